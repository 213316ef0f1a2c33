//! What the forward pass and the step loop see of a group: operations that all its ranks call in the same order.

use std::time::Duration;

use crate::fault::Fault;
use crate::transport::Traffic;

/// One rank's side of a group. Every rank that an operation is among calls it, with the same lengths, in the same order;
/// anything else is found out and ends the group.
///
/// Each message has the group's patience (2 s by default). The first fault ends the group: every later call returns the
/// same culprit and cause at once, and the other ranks are told.
pub trait Communicator: Send {
    /// This rank's place.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Sums `values` elementwise over `members` (ascending, this rank among them). Every member gets the same bits:
    /// the order of summation is by rank, whatever the length, and where the group's sums travel as a shorter type,
    /// contributions and sum are rounded to it alike on every rank.
    ///
    /// # Errors
    /// The group is over.
    fn all_reduce_among(&mut self, members: &[usize], values: &mut [f32]) -> Result<(), Fault>;

    /// Lays `mine` of every member side by side in the order of `members`: `counts` has each one's length, `out` their
    /// sum's. Travels as `f32`.
    ///
    /// # Errors
    /// The group is over.
    fn all_gather_among(
        &mut self,
        members: &[usize],
        mine: &[f32],
        counts: &[usize],
        out: &mut [f32],
    ) -> Result<(), Fault>;

    /// Like [`Communicator::all_gather_among`], but only `root` (one of `members`) gets it: `out` stays untouched, and
    /// may be empty, on every other.
    ///
    /// # Errors
    /// The group is over.
    fn gather_among(
        &mut self,
        members: &[usize],
        root: usize,
        mine: &[f32],
        counts: &[usize],
        out: &mut [f32],
    ) -> Result<(), Fault>;

    /// Gives every rank the bytes of `root`.
    ///
    /// # Errors
    /// The group is over.
    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), Fault>;

    /// A receiver's side of [`Communicator::broadcast`] that may find nothing: waits at most `idle` for `root`'s next
    /// broadcast. `false`: none came, and nobody is to blame. How a follower waits for work.
    ///
    /// # Errors
    /// The group is over.
    fn follow(&mut self, root: usize, bytes: &mut Vec<u8>, idle: Duration) -> Result<bool, Fault>;

    /// Sends rows to one other rank, `f32` on the wire.
    ///
    /// # Errors
    /// The group is over.
    fn send(&mut self, to: usize, values: &[f32]) -> Result<(), Fault>;

    /// Receives what [`Communicator::send`] sent; the lengths must agree.
    ///
    /// # Errors
    /// The group is over.
    fn receive(&mut self, from: usize, values: &mut [f32]) -> Result<(), Fault>;

    /// Sends bytes of any length to one other rank.
    ///
    /// # Errors
    /// The group is over.
    fn send_bytes(&mut self, to: usize, bytes: &[u8]) -> Result<(), Fault>;

    /// Receives what [`Communicator::send_bytes`] sent.
    ///
    /// # Errors
    /// The group is over.
    fn receive_bytes(&mut self, from: usize, bytes: &mut Vec<u8>) -> Result<(), Fault>;

    /// Ends the group and tells the others why. The first end stays.
    fn poison(&mut self, fault: Fault);

    /// Why the group is over, where it is.
    fn fault(&self) -> Option<&Fault>;

    /// How long each message may take from now on.
    fn set_patience(&mut self, patience: Duration);

    /// What has gone over it so far.
    fn traffic(&self) -> Traffic;

    /// [`Communicator::all_reduce_among`] all ranks.
    ///
    /// # Errors
    /// The group is over.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), Fault> {
        let members: Vec<usize> = (0..self.ranks()).collect();
        self.all_reduce_among(&members, values)
    }

    /// [`Communicator::all_gather_among`] all ranks.
    ///
    /// # Errors
    /// The group is over.
    fn all_gather(&mut self, mine: &[f32], counts: &[usize], out: &mut [f32]) -> Result<(), Fault> {
        let members: Vec<usize> = (0..self.ranks()).collect();
        self.all_gather_among(&members, mine, counts, out)
    }

    /// [`Communicator::gather_among`] all ranks.
    ///
    /// # Errors
    /// The group is over.
    fn gather(&mut self, root: usize, mine: &[f32], counts: &[usize], out: &mut [f32]) -> Result<(), Fault> {
        let members: Vec<usize> = (0..self.ranks()).collect();
        self.gather_among(&members, root, mine, counts, out)
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// The group is over.
    fn barrier(&mut self) -> Result<(), Fault> {
        self.all_reduce(&mut [0.0])
    }
}
