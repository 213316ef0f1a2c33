//! Answers that repeat what was said, and answers that nobody can guess.

use super::*;

/// An answer that says what was said before: what a model that repeats its prompt's text does.
fn repeating(position: usize) -> u32 {
    1 + (position % 7) as u32
}

#[test]
fn an_answer_that_repeats_itself_takes_fewer_steps_and_one_that_does_not_is_not_guessed_for_long() {
    let limits = Limits { context: 256, ..limits(128) };
    let run = |tokens_max: usize, next: fn(usize) -> u32| {
        let mut batch = Batch::new(limits.clone()).unwrap();
        let tokens = (0..14).map(next).collect();
        let arrival =
            Arrival { attempt: AttemptId(1), tokens, prompt: 14, generated_max: 200, deadline: None };
        batch.submit(Micros(0), arrival).unwrap();
        let pace = Pace { prefill_beside_decode: 8, guessing: Guessing { tokens_max, cost: 0.2 } };
        let (mut steps, mut rows) = (0, 0);
        while !batch.is_empty() {
            let plan = batch.plan(Micros(steps), &pace, |_| true);
            steps += 1;
            rows += plan.tokens;
            let mut drawn = Vec::new();
            for span in plan.spans.iter().filter(|span| span.draws) {
                let guesses = &batch.tokens(span)[span.count - span.guesses..];
                let at = span.start + span.count - span.guesses;
                let right = guesses.iter().enumerate().take_while(|(i, guess)| **guess == next(at + i));
                let accepted = right.count();
                drawn.push(Draw { accepted, drawn: Drawn::Token(next(at + accepted)) });
            }
            batch.commit(Micros(steps), plan, &drawn);
        }
        (steps, rows)
    };
    let (plain, _) = run(0, repeating);
    let (guessed, rows) = run(5, repeating);
    assert!(guessed * 3 < plain, "{guessed} steps instead of {plain}");
    assert!(rows < 300, "{rows} rows for 214 tokens");
    // Pairs of tokens come again, and what follows them is another each time.
    let wrong = |at: usize| if at % 3 == 2 { 100 + at as u32 } else { 1 + (at % 3) as u32 };
    let (_, rows) = run(5, wrong);
    assert!(rows < 260, "{rows} rows for 214 tokens that nobody can guess");
}
