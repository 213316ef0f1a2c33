//! Instances that run: how they are divided, whether they still fit, and how fast they are.

use std::ops::Range;

use super::Predicted;
use super::board::Board;
use super::divide::{Divided, Seat, Ways, predict, short};
use super::group::Found;
use crate::deployment::Division;

impl Board<'_> {
    /// How a running instance is divided, as far as that is known, and how fast it is.
    pub(super) fn measure(
        &mut self,
        deployment: usize,
        nodes: &[u32],
        stages: Option<&[(Range<usize>, Vec<u32>)]>,
    ) -> Result<(Divided, Predicted), String> {
        let shape = self.shape(deployment).ok_or("its model is not known")?;
        let load = self.terms[deployment].load.ok_or("its model is not known")?;
        let seats: Vec<(Seat, f64)> = nodes.iter().map(|&n| (self.seat(n, deployment, false), 0.0)).collect();
        if let [(seat, _)] = seats[..] {
            let whole = vec![(0..shape.layers(), vec![1])];
            let memory = self.count(deployment, &whole)?;
            if memory[0] > seat.room {
                return Err(short(memory[0], seat.room));
            }
            let divided = Divided { stages: whole, memory };
            let predicted = predict(shape, &divided, &[seat], &Ways { link: &|_, _| None });
            return Ok((divided, predicted));
        }
        let local = self.local(deployment, seats);
        let members: Vec<usize> = (0..nodes.len()).collect();
        if let Some(stages) = stages {
            let memory = self.count(deployment, stages)?;
            if memory.len() != nodes.len() {
                return Err("its ranks are not those of its division".to_owned());
            }
            let tight = memory.iter().zip(&local.seats).find(|(memory, seat)| **memory > seat.room);
            if let Some((&memory, seat)) = tight {
                return Err(format!("{}: {}", self.name(seat.node), short(memory, seat.room)));
            }
            let divided = Divided { stages: stages.to_vec(), memory };
            let link = |a: usize, b: usize| local.between(a, b);
            let predicted = predict(shape, &divided, &local.seats, &Ways { link: &link });
            return Ok((divided, predicted));
        }
        // In the order in which its ranks are, whatever order would be chosen today.
        let count = members.len();
        let stages: Vec<Vec<Vec<usize>>> = match self.snapshot.wanted[deployment].spec.shape {
            Division::Pipeline(_) => vec![members.iter().map(|&at| vec![at]).collect()],
            Division::Both { tensor, .. } => {
                vec![members.chunks(tensor.max(1) as usize).map(<[usize]>::to_vec).collect()]
            }
            Division::Tensor(_) | Division::Single => vec![vec![members]],
            Division::Auto => vec![vec![members.clone()], members.iter().map(|&at| vec![at]).collect()],
        };
        let mut best: Result<Found, String> = Err(format!("{count} ranks do not hold it"));
        for stages in stages {
            let found = self.evaluate(deployment, (shape, load), (&local, 0.0), &stages);
            match (&best, found) {
                (Err(_), found) => best = found,
                (Ok(have), Ok(found)) if found.worth > have.worth => best = Ok(found),
                _ => {}
            }
        }
        best.map(|found| (found.divided, found.predicted))
    }
}
