//! The collectives over any transport: what is sent to whom, in which order it is summed, and what ends a group.

use std::ops::Range;
use std::time::Duration;

use wire::link::{HEADER_BYTES, INT8_BLOCK, LinkHeader, LinkKind, WireType, decode as decode_frame};

use crate::communicator::Communicator;
use crate::encoding::{decode, encode, quantise};
use crate::fault::{Cause, Fault};
use crate::transport::{Traffic, Transport, TransportError};

/// Up to so many bytes of payload, three ranks and more exchange whole vectors: one message deep, each way. Above it,
/// reduce-scatter and all-gather send 2 (R-1)/R of a vector instead of R-1 vectors, at twice the depth. Where the two
/// cross depends on the machines; the result does not (see [`Communicator::all_reduce_among`]).
pub const DIRECT_BYTES_MAX: usize = 64 << 10;

/// What all ranks of a group have agreed on before it is one.
#[derive(Debug, Clone, Copy)]
pub struct GroupTerms {
    /// Which life of the group; a frame of another is refused.
    pub epoch: u64,
    /// How sums travel.
    pub dtype: WireType,
    /// How long a message may take.
    pub patience: Duration,
}

impl Default for GroupTerms {
    fn default() -> Self {
        Self { epoch: 0, dtype: WireType::F32, patience: Duration::from_secs(2) }
    }
}

/// One rank's side of a group, over `T`.
pub struct Group<T: Transport> {
    transport: T,
    terms: GroupTerms,
    /// Frames sent to each rank so far, and received from each.
    sent: Vec<u64>,
    received: Vec<u64>,
    operations: u64,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    sum: Vec<f32>,
    everyone: Vec<usize>,
    fault: Option<Fault>,
}

impl<T: Transport> Group<T> {
    /// A group over `transport`, on `terms` that every rank shares.
    pub fn new(transport: T, terms: GroupTerms) -> Self {
        let ranks = transport.ranks();
        assert!(transport.rank() < ranks, "rank {} of {ranks}", transport.rank());
        assert!(terms.dtype != WireType::Bytes, "sums travel as numbers");
        Self {
            transport,
            terms,
            sent: vec![0; ranks],
            received: vec![0; ranks],
            operations: 0,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            sum: Vec::new(),
            everyone: (0..ranks).collect(),
            fault: None,
        }
    }

    /// The transport, for what is its own to tell.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// Runs one operation: not at all where the group is over, and its end where it fails.
    fn run<R>(&mut self, operation: impl FnOnce(&mut Self) -> Result<R, TransportError>) -> Result<R, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        self.operations += 1;
        operation(self).map_err(|error| {
            let mut fault = Fault::from(error);
            fault.operation = self.operations;
            self.end(fault)
        })
    }

    fn end(&mut self, fault: Fault) -> Fault {
        if self.fault.is_none() {
            self.transport.poison(&fault);
            self.fault = Some(fault);
        }
        self.fault.clone().expect("set just above")
    }

    fn header(&self, kind: LinkKind, dtype: WireType, count: usize) -> LinkHeader {
        let columns = count as u64;
        LinkHeader { kind, dtype, epoch: self.terms.epoch, sequence: 0, request: 0, rows: 1, columns }
    }

    /// Makes one frame of `values` in the outgoing buffer; its sequence is written for each receiver.
    fn pack(&mut self, kind: LinkKind, dtype: WireType, values: &[f32]) {
        self.outgoing.clear();
        let length = dtype.bytes(values.len()).expect("the values are in memory at four bytes each");
        self.header(kind, dtype, values.len()).put(length, &mut self.outgoing);
        encode(values, dtype, &mut self.outgoing);
    }

    fn pack_bytes(&mut self, kind: LinkKind, bytes: &[u8]) {
        self.outgoing.clear();
        self.header(kind, WireType::Bytes, bytes.len()).put(bytes.len(), &mut self.outgoing);
        self.outgoing.extend_from_slice(bytes);
    }

    /// Sends the outgoing frame.
    fn post(&mut self, to: usize) -> Result<(), TransportError> {
        self.outgoing[16..24].copy_from_slice(&self.sent[to].to_le_bytes());
        self.sent[to] += 1;
        self.transport.send(to, &self.outgoing, self.terms.patience)
    }

    /// Takes the next frame from `from` into the incoming buffer; it must be what is due.
    fn take(
        &mut self,
        from: usize,
        kind: LinkKind,
        dtype: WireType,
        count: Option<usize>,
        patience: Duration,
    ) -> Result<(), TransportError> {
        self.transport.receive(from, &mut self.incoming, patience)?;
        let due = self.header(kind, dtype, 0);
        let sequence = self.received[from];
        self.received[from] += 1;
        let to_blame = |cause| TransportError { culprit: Some(from), cause };
        let (header, _) = decode_frame(&self.incoming)
            .map_err(|error| to_blame(Cause::Malformed(error.to_string().into())))?;
        let wrong = |what, expected: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
            let (expected, got) = (format!("{expected:?}"), format!("{got:?}"));
            Err(to_blame(Cause::Disagrees { what, expected, got }))
        };
        if header.epoch != due.epoch {
            return wrong("the group's epoch", &due.epoch, &header.epoch);
        }
        if header.sequence != sequence {
            return wrong("the frame's sequence", &sequence, &header.sequence);
        }
        if header.kind != kind {
            return wrong("the operation", &kind, &header.kind);
        }
        if header.dtype != dtype {
            return wrong("the element type", &dtype.name(), &header.dtype.name());
        }
        let elements = (header.rows, header.columns);
        if count.is_some_and(|count| elements != (1, count as u64)) || header.rows != 1 {
            return wrong("the shape", &(1, count.unwrap_or_default()), &elements);
        }
        Ok(())
    }

    fn payload(&self) -> &[u8] {
        &self.incoming[HEADER_BYTES..]
    }

    /// Every member sends its whole vector to every other, and each sums all in the order of ranks.
    fn reduce_directly(&mut self, members: &[usize], values: &mut [f32]) -> Result<(), TransportError> {
        let (me, dtype, patience) = (self.transport.rank(), self.terms.dtype, self.terms.patience);
        self.pack(LinkKind::Reduce, dtype, values);
        for to in others(members, me) {
            self.post(to)?;
        }
        quantise(values, dtype);
        self.add_up(members, LinkKind::Reduce, values, 0..values.len(), patience)?;
        quantise(values, dtype);
        Ok(())
    }

    /// Sums `values[part]` of every member in the order of ranks, this rank's own in its place, into `values[part]`.
    fn add_up(
        &mut self,
        members: &[usize],
        kind: LinkKind,
        values: &mut [f32],
        part: Range<usize>,
        patience: Duration,
    ) -> Result<(), TransportError> {
        let (me, dtype) = (self.transport.rank(), self.terms.dtype);
        let mut sum = std::mem::take(&mut self.sum);
        sum.clear();
        sum.resize(part.len(), 0.0);
        for (index, &member) in members.iter().enumerate() {
            if member == me {
                if index == 0 {
                    sum.copy_from_slice(&values[part.clone()]);
                } else {
                    sum.iter_mut().zip(&values[part.clone()]).for_each(|(sum, x)| *sum += x);
                }
                continue;
            }
            self.take(member, kind, dtype, Some(part.len()), patience)?;
            if index == 0 {
                decode(self.payload(), dtype, &mut sum, |sum, x| *sum = x);
            } else {
                decode(self.payload(), dtype, &mut sum, |sum, x| *sum += x);
            }
        }
        values[part].copy_from_slice(&sum);
        self.sum = sum;
        Ok(())
    }

    /// Every member sums one part for all, in the order of ranks, and hands it out.
    fn reduce_in_parts(&mut self, members: &[usize], values: &mut [f32]) -> Result<(), TransportError> {
        let (me, dtype, patience) = (self.transport.rank(), self.terms.dtype, self.terms.patience);
        let place = |rank| members.iter().position(|&m| m == rank).expect("checked by the caller");
        let mine = part_of(values.len(), members.len(), place(me));
        for to in others(members, me) {
            let part = part_of(values.len(), members.len(), place(to));
            self.pack(LinkKind::Reduce, dtype, &values[part]);
            self.post(to)?;
        }
        // Parts begin at whole blocks, so these are the values that a whole vector would have been rounded to.
        quantise(&mut values[mine.clone()], dtype);
        self.add_up(members, LinkKind::Reduce, values, mine.clone(), patience)?;
        self.pack(LinkKind::Sum, dtype, &values[mine.clone()]);
        quantise(&mut values[mine], dtype);
        for to in others(members, me) {
            self.post(to)?;
        }
        for &from in members.iter().filter(|&&m| m != me) {
            let part = part_of(values.len(), members.len(), place(from));
            self.take(from, LinkKind::Sum, dtype, Some(part.len()), patience)?;
            decode(self.payload(), dtype, &mut values[part], |out, x| *out = x);
        }
        Ok(())
    }

    /// Asserts that `members` is what a caller may pass.
    fn check(&self, members: &[usize]) {
        let ranks = self.transport.ranks();
        assert!(
            members.windows(2).all(|w| w[0] < w[1])
                && members.last().is_some_and(|&m| m < ranks)
                && members.contains(&self.transport.rank()),
            "members {members:?} of a group of {ranks}, called by rank {}",
            self.transport.rank()
        );
    }
}

/// The other members, the next in rank first, so that not all begin with the same one.
fn others(members: &[usize], me: usize) -> impl Iterator<Item = usize> + '_ {
    let place = members.iter().position(|&m| m == me).expect("checked by the caller");
    (1..members.len()).map(move |i| members[(place + i) % members.len()])
}

/// The `index`-th of `parts` parts of `length` values, cut at whole blocks.
fn part_of(length: usize, parts: usize, index: usize) -> Range<usize> {
    let blocks = length.div_ceil(INT8_BLOCK);
    let cut = |i: usize| (blocks * i / parts * INT8_BLOCK).min(length);
    cut(index)..cut(index + 1)
}

impl<T: Transport> Communicator for Group<T> {
    fn rank(&self) -> usize {
        self.transport.rank()
    }

    fn ranks(&self) -> usize {
        self.transport.ranks()
    }

    fn all_reduce_among(&mut self, members: &[usize], values: &mut [f32]) -> Result<(), Fault> {
        self.check(members);
        self.run(|group| {
            let bytes = group.terms.dtype.bytes(values.len()).unwrap_or(usize::MAX);
            match members.len() {
                1 => Ok(()),
                3.. if bytes > DIRECT_BYTES_MAX => group.reduce_in_parts(members, values),
                _ => group.reduce_directly(members, values),
            }
        })
    }

    fn all_gather_among(
        &mut self,
        members: &[usize],
        mine: &[f32],
        counts: &[usize],
        out: &mut [f32],
    ) -> Result<(), Fault> {
        self.check(members);
        check_counts(members, counts, out.len());
        self.run(|group| {
            let me = group.transport.rank();
            group.pack(LinkKind::Gather, WireType::F32, mine);
            for to in others(members, me) {
                group.post(to)?;
            }
            group.collect(members, mine, counts, out)
        })
    }

    fn gather_among(
        &mut self,
        members: &[usize],
        root: usize,
        mine: &[f32],
        counts: &[usize],
        out: &mut [f32],
    ) -> Result<(), Fault> {
        self.check(members);
        assert!(members.contains(&root), "root {root} is none of {members:?}");
        self.run(|group| {
            if group.transport.rank() == root {
                check_counts(members, counts, out.len());
                return group.collect(members, mine, counts, out);
            }
            group.pack(LinkKind::Gather, WireType::F32, mine);
            group.post(root)
        })
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        self.run(|group| {
            if group.transport.rank() == root {
                group.pack_bytes(LinkKind::Broadcast, bytes);
                return (0..group.transport.ranks())
                    .filter(|&to| to != root)
                    .try_for_each(|to| group.post(to));
            }
            group.take(root, LinkKind::Broadcast, WireType::Bytes, None, group.terms.patience)?;
            bytes.clear();
            bytes.extend_from_slice(group.payload());
            Ok(())
        })
    }

    fn follow(&mut self, root: usize, bytes: &mut Vec<u8>, idle: Duration) -> Result<bool, Fault> {
        assert!(self.transport.rank() != root, "the root of a broadcast follows nobody");
        self.run(|group| {
            // A look that is shorter than the patience blames nobody: a rank that was silent for as long as that may be
            // waiting for its turn on a busy machine, whoever the transport thinks of.
            let short = idle < group.terms.patience;
            match group.take(root, LinkKind::Broadcast, WireType::Bytes, None, idle) {
                Err(TransportError { cause: Cause::Late(after), culprit: Some(culprit) })
                    if after == idle && (short || culprit == root) =>
                {
                    return Ok(false);
                }
                taken => taken?,
            }
            bytes.clear();
            bytes.extend_from_slice(group.payload());
            Ok(true)
        })
    }

    fn send(&mut self, to: usize, values: &[f32]) -> Result<(), Fault> {
        self.run(|group| {
            group.pack(LinkKind::Values, WireType::F32, values);
            group.post(to)
        })
    }

    fn receive(&mut self, from: usize, values: &mut [f32]) -> Result<(), Fault> {
        self.run(|group| {
            let patience = group.terms.patience;
            group.take(from, LinkKind::Values, WireType::F32, Some(values.len()), patience)?;
            decode(group.payload(), WireType::F32, values, |out, x| *out = x);
            Ok(())
        })
    }

    fn send_bytes(&mut self, to: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.run(|group| {
            group.pack_bytes(LinkKind::Bytes, bytes);
            group.post(to)
        })
    }

    fn receive_bytes(&mut self, from: usize, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        self.run(|group| {
            group.take(from, LinkKind::Bytes, WireType::Bytes, None, group.terms.patience)?;
            bytes.clear();
            bytes.extend_from_slice(group.payload());
            Ok(())
        })
    }

    fn poison(&mut self, fault: Fault) {
        self.end(fault);
    }

    fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    fn set_patience(&mut self, patience: Duration) {
        self.terms.patience = patience;
    }

    fn traffic(&self) -> Traffic {
        self.transport.traffic()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), Fault> {
        let members = std::mem::take(&mut self.everyone);
        let result = self.all_reduce_among(&members, values);
        self.everyone = members;
        result
    }
}

impl<T: Transport> Group<T> {
    /// Receives every other member's part and lays all side by side.
    fn collect(
        &mut self,
        members: &[usize],
        mine: &[f32],
        counts: &[usize],
        out: &mut [f32],
    ) -> Result<(), TransportError> {
        let patience = self.terms.patience;
        let mut rest = out;
        for (&member, &count) in members.iter().zip(counts) {
            let (part, after) = rest.split_at_mut(count);
            rest = after;
            if member == self.transport.rank() {
                part.copy_from_slice(mine);
            } else {
                self.take(member, LinkKind::Gather, WireType::F32, Some(count), patience)?;
                decode(self.payload(), WireType::F32, part, |out, x| *out = x);
            }
        }
        Ok(())
    }
}

fn check_counts(members: &[usize], counts: &[usize], length: usize) {
    assert!(
        counts.len() == members.len() && counts.iter().sum::<usize>() == length,
        "{} counts of {} values in all, for {} members and {length} places",
        counts.len(),
        counts.iter().sum::<usize>(),
        members.len()
    );
}
