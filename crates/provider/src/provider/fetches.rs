//! The provider's task and models that machines take from each other: what the coordinator wants, what threads say.

use base::ModelName;
use wire::control::{AssignmentPhase, AssignmentReport, FetchModel, FromProvider, Lends};

use super::Provider;
use crate::event::Event;
use crate::fetch::{Ended, Progress};
use crate::uplink::machine::Input;

impl Provider {
    /// A model is wanted here that other machines have.
    pub(super) fn fetch(&mut self, wanted: FetchModel) {
        let Some(managed) = &mut self.managed else {
            let FetchModel { instance, epoch, rank, .. } = wanted;
            let detail =
                "its owner decides what this machine holds: start its provider with --managed".to_owned();
            let phase = AssignmentPhase::Refused;
            let report = AssignmentReport { instance, epoch, rank, phase, percent: 0, detail };
            self.say_if_up(&FromProvider::AssignmentReport(report));
            return;
        };
        if managed.shelf.find(&wanted.model).is_some() {
            // It is here: whoever asks has not heard of it yet.
            self.say_inventory();
            return;
        }
        let said = managed.fetches.fetch(wanted);
        managed.note_held();
        if let Some(said) = said {
            self.say_if_up(&said);
        }
    }

    /// Who may have which of this machine's models.
    pub(super) fn lend(&mut self, lends: Lends) {
        if let Some(managed) = &self.managed {
            managed.lending.listed(lends);
        }
    }

    /// A model is on its way.
    pub(super) fn fetching(&mut self, model: &ModelName, progress: Progress) -> Option<Input> {
        let said = self.managed.as_mut()?.fetches.progress(model, progress);
        said.into_iter().find_map(|said| self.say_if_up(&said))
    }

    /// It is here, or it is not to be had.
    pub(super) fn fetch_ended(&mut self, model: &ModelName, how: &Ended) -> Option<Input> {
        let managed = self.managed.as_mut()?;
        let said = managed.fetches.ended(model, how);
        match how {
            Ended::Here => {
                managed.look_again();
                self.tell(Event::Fetched { model: model.clone() });
            }
            Ended::Failed(why) | Ended::Refused(why) => {
                self.tell(Event::Failed { model: model.clone(), detail: why.clone() });
            }
            Ended::Cancelled => self.tell(Event::FetchEnded { model: model.clone() }),
        }
        said.into_iter().find_map(|said| self.say_if_up(&said))
    }

    /// On a new connection: how far each is.
    pub(super) fn say_fetches_again(&mut self) -> Option<Input> {
        let again = self.managed.as_ref().map(|managed| managed.fetches.again()).unwrap_or_default();
        again.into_iter().find_map(|said| self.say_if_up(&said))
    }
}
