//! Stop texts: an answer ends before any of them, wherever token borders fall.

/// Holds back what may turn out to begin a stop text. Not `Debug`: it holds text of an answer.
pub(crate) struct StopTexts {
    stops: Vec<String>,
    held: String,
    /// The one that came.
    found: Option<u32>,
}

/// What became certain.
#[derive(PartialEq)]
pub(crate) struct Certain {
    /// Text that no stop text can take back.
    pub(crate) text: String,
    /// Whether a stop text came.
    pub(crate) stopped: bool,
}

impl StopTexts {
    /// Ends before any of `stops`, none of which is empty.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop text would end every answer");
        Self { stops, held: String::new(), found: None }
    }

    /// The answer goes on with `text`.
    pub(crate) fn push(&mut self, text: &str) -> Certain {
        self.held.push_str(text);
        let places = (0u32..).zip(&self.stops);
        let found = places.filter_map(|(which, stop)| Some((self.held.find(stop.as_str())?, which))).min();
        if let Some((at, which)) = found {
            self.found = Some(which);
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Certain { text, stopped: true };
        }
        let begins_stop = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(begins_stop).unwrap_or(self.held.len());
        let kept = self.held.split_off(keep);
        Certain { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// The stop text that came, as a place among them.
    pub(crate) fn found(&self) -> Option<u32> {
        self.found
    }

    /// The answer ends: what was held back is certain now.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopTexts::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut answer = String::new();
        for piece in pieces {
            let certain = matcher.push(piece);
            answer.push_str(&certain.text);
            if certain.stopped {
                return (answer, true);
            }
        }
        answer.push_str(&matcher.flush());
        (answer, false)
    }

    #[test]
    fn a_stop_text_across_pieces_ends_the_answer_before_it() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
        assert_eq!(run(&["END"], &["one E", "N", "E"]), ("one ENE".into(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&["é!", "!"], &["café", "!"]), ("caf".into(), true));
    }

    #[test]
    fn what_may_begin_a_stop_text_is_held_back_and_nothing_more() {
        let mut matcher = StopTexts::new(vec!["\n\nQ:".into()]);
        assert!(matcher.push("text\n").text == "text");
        assert!(matcher.push("\nA").text == "\n\nA");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            text in "[abc]{0,40}",
            stops in prop::collection::vec("[abc]{1,4}", 0..3),
            cuts in prop::collection::vec(0usize..40, 0..8),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            let (answer, stopped) = run(&stops, &pieces);
            // The first stop text to be complete ends it; of several complete in one piece, the one that begins first.
            prop_assert!(text.starts_with(&answer));
            prop_assert_eq!(stopped, stops.iter().any(|stop| text.contains(stop)));
            prop_assert!(stops.iter().all(|stop| !answer.contains(stop)));
            if !stopped {
                prop_assert_eq!(answer, text);
            }
        }
    }
}
