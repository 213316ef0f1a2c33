//! A model's files over real sockets: taken whole, cut in the middle and gone on with, damaged on the way and by who gives.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use link::{Answering, Giving, Library, Taking, TransferError, answer, want};
use trust::MachineKeys;
use wire::link::{Manifest, ManifestFile};

const REACH: Duration = Duration::from_secs(30);
const PIECE: usize = 1 << 16;

/// Some files, and what is wrong with whoever gives them.
#[derive(Clone)]
struct Shelf {
    files: Vec<(String, Vec<u8>)>,
    /// Said instead of the true manifest.
    manifest: Option<Vec<u8>>,
    /// A byte of the second file that is given wrongly.
    damaged: Option<u64>,
    may: [u8; 32],
}

impl Shelf {
    fn new(may: [u8; 32]) -> Self {
        let bytes =
            |count: usize, seed: usize| (0..count).map(|at| (at * 31 + seed * 7 + at / 251) as u8).collect();
        let files = vec![
            ("config.json".to_owned(), bytes(300, 1)),
            ("model.safetensors".to_owned(), bytes(5 * PIECE + 77, 2)),
            ("empty.txt".to_owned(), Vec::new()),
        ];
        Self { files, manifest: None, damaged: None, may }
    }

    fn manifest(&self) -> Manifest {
        let file = |(path, bytes): &(String, Vec<u8>)| ManifestFile {
            path: path.clone(),
            bytes: bytes.len() as u64,
            pieces: bytes.chunks(PIECE).map(trust::sha256).collect(),
        };
        Manifest { piece_bytes: PIECE as u32, files: self.files.iter().map(file).collect() }
    }
}

impl Library for Shelf {
    fn open<'a>(
        &'a self,
        key: [u8; 32],
        model: &str,
        preparing: &mut dyn FnMut(u8) -> bool,
    ) -> Result<Box<dyn Giving + 'a>, String> {
        assert!(preparing(50));
        if key != self.may || model != "acme/small" {
            return Err(format!("{model} is not yours"));
        }
        Ok(Box::new(Given(self)))
    }
}

struct Given<'a>(&'a Shelf);

impl Giving for Given<'_> {
    fn manifest(&self) -> Arc<[u8]> {
        self.0.manifest.clone().unwrap_or_else(|| self.0.manifest().encode()).into()
    }

    fn read(&mut self, file: usize, offset: u64, into: &mut [u8]) -> Result<(), String> {
        let at = offset as usize;
        into.copy_from_slice(&self.0.files[file].1[at..at + into.len()]);
        if let Some(damaged) = self.0.damaged.filter(|_| file == 1)
            && (offset..offset + into.len() as u64).contains(&damaged)
        {
            into[(damaged - offset) as usize] ^= 1;
        }
        Ok(())
    }

    fn rest(&mut self, _bytes: usize, _took: Duration) -> bool {
        true
    }
}

/// Answers whoever dials, each in a thread of its own.
fn door(keys: MachineKeys, shelf: Shelf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let keys = Arc::new(keys);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (keys, shelf) = (Arc::clone(&keys), shelf.clone());
            std::thread::spawn(move || {
                let known = vec![shelf.may];
                let library: Option<&dyn Library> = Some(&shelf);
                let _ = answer(stream, &keys, Answering { known, busy: false, within: REACH, library });
            });
        }
    });
    address
}

/// What lies between two machines: carries so many bytes from the one that is dialled, then does something to them.
fn between(there: SocketAddr, bytes: usize, then: fn(&mut [u8]) -> bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let carried = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        while let Ok((mut near, _)) = listener.accept() {
            let mut far = TcpStream::connect(there).unwrap();
            let (mut back, mut out) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut near, &mut far));
            let carried = Arc::clone(&carried);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = back.read(&mut buffer) {
                    let before = carried.fetch_add(read, Ordering::Relaxed);
                    // Once: what is dialled again goes through.
                    let is_it = before < bytes && before + read >= bytes;
                    if (is_it && !then(&mut buffer[..read])) || out.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
                let _ = out.shutdown(Shutdown::Both);
                let _ = back.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

fn asked(
    address: SocketAddr,
    keys: &MachineKeys,
    key: [u8; 32],
    model: &str,
) -> Result<Taking, TransferError> {
    want(address, keys, key, (model, REACH), &mut |_| true)
}

/// Takes what is missing of all files, as `have` says; puts what came into it.
fn take_all(taking: &mut Taking, have: &mut [Vec<u8>]) -> Result<(), TransferError> {
    for (file, have) in have.iter_mut().enumerate() {
        let pieces = taking.manifest().files[file].pieces.len();
        let mut next = have.len() / PIECE;
        have.truncate(next * PIECE);
        while next < pieces {
            let mut each = |piece: usize, bytes: &[u8]| {
                assert_eq!(have.len(), piece * PIECE);
                have.extend_from_slice(bytes);
                true
            };
            next += taking.take(file, (next, pieces), &mut each)?;
        }
    }
    Ok(())
}

struct Two {
    here: MachineKeys,
    key: [u8; 32],
    shelf: Shelf,
    address: SocketAddr,
}

fn two(change: impl FnOnce(&mut Shelf)) -> Two {
    let (here, there) = (MachineKeys::generate(), MachineKeys::generate());
    let key = there.signing_key();
    let mut shelf = Shelf::new(here.signing_key());
    change(&mut shelf);
    let address = door(there, shelf.clone());
    Two { here, key, shelf, address }
}

fn whole(shelf: &Shelf) -> Vec<Vec<u8>> {
    shelf.files.iter().map(|(_, bytes)| bytes.clone()).collect()
}

#[test]
fn a_model_is_taken_whole_and_who_says_the_same_has_the_same() {
    let Two { here, key, shelf, address } = two(|_| {});
    let mut taking = asked(address, &here, key, "acme/small").unwrap();
    assert_eq!(*taking.manifest(), shelf.manifest());
    assert_eq!(taking.root(), trust::sha256(&shelf.manifest().encode()));
    let mut have = vec![Vec::new(); 3];
    take_all(&mut taking, &mut have).unwrap();
    assert!(have == whole(&shelf));
    // Nothing is asked for that is not there.
    assert_eq!(taking.take(7, (0, 1), &mut |_, _| true).unwrap(), 0);
    assert_eq!(taking.take(1, (99, 1), &mut |_, _| true).unwrap(), 0);
}

#[test]
fn what_was_cut_is_gone_on_with_and_no_piece_that_came_comes_again() {
    let Two { here, key, shelf, address } = two(|_| {});
    let cut = between(address, 3 * PIECE, |_| false);
    let mut have = vec![Vec::new(); 3];
    let mut taking = asked(cut, &here, key, "acme/small").unwrap();
    let error = take_all(&mut taking, &mut have).unwrap_err();
    assert!(matches!(error, TransferError::Link(_)) && !error.is_wrong(), "{error}");
    let came = have[1].len();
    assert!((PIECE..5 * PIECE).contains(&came), "{came}");
    let mut again = asked(cut, &here, key, "acme/small").unwrap();
    assert_eq!(again.root(), taking.root());
    let before = have[1][..came / PIECE * PIECE].to_vec();
    take_all(&mut again, &mut have).unwrap();
    assert!(have == whole(&shelf) && have[1].starts_with(&before));
}

#[test]
fn a_byte_that_changes_on_the_way_ends_the_link_and_is_never_believed() {
    let Two { here, key, address, .. } = two(|_| {});
    let damaging = between(address, 3 * PIECE, |bytes| {
        bytes[0] ^= 0x40;
        true
    });
    let mut have = vec![Vec::new(); 3];
    let mut taking = asked(damaging, &here, key, "acme/small").unwrap();
    let error = take_all(&mut taking, &mut have).unwrap_err();
    assert!(matches!(error, TransferError::Link(_)), "{error}");
}

#[test]
fn a_machine_that_gives_other_bytes_than_it_says_is_found_out_by_file_and_piece() {
    let Two { here, key, address, .. } = two(|shelf| shelf.damaged = Some(3 * PIECE as u64 + 5));
    let mut have = vec![Vec::new(); 3];
    let mut taking = asked(address, &here, key, "acme/small").unwrap();
    let error = take_all(&mut taking, &mut have).unwrap_err();
    assert!(error.is_wrong());
    assert!(error.to_string().contains("piece 3 of model.safetensors"), "{error}");
    assert_eq!(have[1].len(), 3 * PIECE, "what came before it is whole");
}

#[test]
fn hostile_manifests_are_refused_before_anything_is_asked_for() {
    let sly = |path: &str| {
        let file = ManifestFile { path: path.to_owned(), bytes: 1, pieces: vec![[0; 32]] };
        Manifest { piece_bytes: PIECE as u32, files: vec![file] }.encode()
    };
    for manifest in
        [sly("../../etc/cron.d/x"), sly("/etc/passwd"), sly(".bashrc"), b"nonsense".to_vec(), Vec::new()]
    {
        let Two { here, key, address, .. } = two(|shelf| shelf.manifest = Some(manifest.clone()));
        let error = asked(address, &here, key, "acme/small").err().unwrap();
        // Who gives reads its own manifest, too: whichever end sees it first.
        assert!(matches!(error, TransferError::Manifest(_) | TransferError::Refused(_)), "{error}");
    }
}

#[test]
fn only_whoever_was_named_has_what_it_was_named_for() {
    let Two { here, key, address, .. } = two(|_| {});
    let error = asked(address, &here, key, "acme/other").err().unwrap();
    assert_eq!(error, TransferError::Refused("acme/other is not yours".to_owned()));
    let stranger = MachineKeys::generate();
    let error = asked(address, &stranger, key, "acme/small").err().unwrap();
    assert!(matches!(error, TransferError::Link(_)), "{error}");
    // Somebody else answers where the holder should.
    let error = asked(address, &here, MachineKeys::generate().signing_key(), "acme/small").err().unwrap();
    assert!(matches!(error, TransferError::Link(_)), "{error}");
}

#[test]
fn whoever_wants_no_more_stops_in_the_middle() {
    let Two { here, key, address, .. } = two(|_| {});
    let mut taking = asked(address, &here, key, "acme/small").unwrap();
    let mut came = 0;
    let mut each = |_: usize, _: &[u8]| {
        came += 1;
        came < 2
    };
    assert_eq!(taking.take(1, (0, 9), &mut each), Err(TransferError::Stopped));
    assert_eq!(came, 2);
}
