//! Random prompts in words that the bundled model was trained on: no two alike unless asked for, of a given length.

use base::Rng;

const OPENINGS: [&str; 8] = [
    "Hello! I have a question.",
    "Good morning.",
    "I am new here.",
    "Let us talk for a while.",
    "Please help me with something.",
    "Hi there!",
    "I was told that you can answer this.",
    "Thank you for your time.",
];

const TALK: [&str; 16] = [
    "The little fox went to the river",
    "my friend has a red boat",
    "the machine in the kitchen is old",
    "we walked to the hill in the rain",
    "a small bird sang in the garden",
    "the lamp was green and warm",
    "she found a key under the stone",
    "the moon was bright over the sea",
    "two cats slept on the chair",
    "he gave the bread to the children",
    "the road was long and quiet",
    "a letter came from the north",
    "the tall tree lost its leaves",
    "they built a house of wood",
    "the cook made soup with salt",
    "winter was cold and the days were short",
];

const QUESTIONS: [&str; 8] = [
    "What is Phalanx?",
    "Tell me a short story.",
    "What is the capital of France?",
    "Which day comes after Monday?",
    "What can you do?",
    "What sound does a dog make?",
    "What is the opposite of hot?",
    "Who are you?",
];

/// A prompt of about `bytes` bytes (never fewer), wholly given by `seed`.
pub(crate) fn prompt(seed: u64, bytes: usize) -> String {
    let mut rng = Rng::new(seed ^ 0x70_72_6f_6d_70_74);
    let mut pick = |from: &[&'static str]| from[rng.below(from.len() as u64) as usize];
    let (opening, question) = (pick(&OPENINGS), pick(&QUESTIONS));
    let mut text = format!("{opening} This is story number {seed}.");
    // The talk makes up the length; what is asked comes last, as people write.
    while text.len() + question.len() + 1 < bytes {
        text.push(' ');
        text.push_str(pick(&TALK));
        text.push_str(", and ");
        text.push_str(pick(&TALK));
        text.push('.');
    }
    text.push(' ');
    text.push_str(question);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_the_length_asked_for_and_follows_from_its_seed() {
        let long = prompt(7, 10 * 1024);
        assert!((10 * 1024..10 * 1024 + 200).contains(&long.len()), "{}", long.len());
        assert_eq!(long, prompt(7, 10 * 1024));
        assert_ne!(long, prompt(8, 10 * 1024));
        assert!(prompt(1, 0).ends_with('?') || prompt(1, 0).ends_with('.'));
    }
}
