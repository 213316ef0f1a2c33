//! One typed request, whatever API it came through: what every adapter translates into, and nothing else serves.

use serde_json::{Map, Value, json};

/// What a caller asks for. Not `Debug`: it holds prompts.
#[derive(Clone, PartialEq)]
pub struct Request {
    /// The model asked for.
    pub model: String,
    /// What is to be continued.
    pub source: Source,
    /// How to generate.
    pub generation: Generation,
}

/// What is to be continued. Not `Debug`: it holds prompts.
#[derive(Clone, PartialEq)]
pub enum Source {
    /// A conversation.
    Chat(Chat),
    /// Texts; choices are generated for each.
    Texts(Vec<Prompt>),
}

/// A conversation. Not `Debug`: it is a prompt.
#[derive(Clone, Default, PartialEq)]
pub struct Chat {
    /// What was said, oldest first, in OpenAI's shape and ready for a chat template: objects with `role` (system, user,
    /// assistant, tool), `content` (a string), and where given `name`, `tool_calls`, `tool_call_id`, `reasoning_content`.
    pub messages: Vec<Value>,
    /// What the answer begins with, where the caller wrote its beginning.
    pub prefix: Option<String>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Whether it must, may or shall not call them.
    pub tool_choice: ToolChoice,
    /// Whether it may call several at once.
    pub parallel_tools: bool,
    /// How much it shall think before it answers; nothing where the caller did not say.
    pub effort: Option<&'static str>,
    /// Further variables for the chat template (extension `chat_template_kwargs`, under vLLM's name).
    pub template_variables: Map<String, Value>,
}

/// Something that a model may call. Not `Debug`: it is a part of a prompt.
#[derive(Clone, PartialEq)]
pub struct Tool {
    /// 1 to 64 letters, digits, `_`, `-`, `.`.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// Whether arguments must fit the schema.
    pub strict: bool,
}

impl Tool {
    /// As chat templates expect it.
    pub fn for_template(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".to_owned(), json!(self.name));
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), json!(description));
        }
        function.insert("parameters".to_owned(), self.parameters.clone());
        json!({"type": "function", "function": function})
    }
}

/// Whether a model calls tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// No.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// What a completion begins with. Not `Debug`: it is a prompt.
#[derive(Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, to be tokenized.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

/// What form an answer must have. Not `Debug`: schemas may be as private as prompts.
#[derive(Clone, Default, PartialEq)]
pub enum AnswerFormat {
    /// Any.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// What the caller calls it.
        name: Option<String>,
    },
    /// A text that fits a regular expression.
    Regex(String),
    /// A grammar in Lark's notation.
    Lark(String),
    /// One of some texts.
    Choice(Vec<String>),
}

/// How to generate: what all APIs share. Absent means that the caller did not say.
#[derive(Clone, Default, PartialEq)]
pub struct Generation {
    /// Pieces as they come instead of one body.
    pub stream: bool,
    /// A last event with the usage.
    pub include_usage: bool,
    /// Answers to each prompt, with seeds that follow each other; 0 counts as 1.
    pub choices: u32,
    /// The prompt is a part of each choice's text.
    pub echo: bool,
    /// What form the answer must have.
    pub format: AnswerFormat,
    /// At most so many generated tokens.
    pub max_tokens: Option<u32>,
    /// 0 is greedy. The APIs' common default is 1.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// The k most probable; 0 is off.
    pub top_k: Option<u32>,
    /// Relative floor; 0 is off.
    pub min_p: Option<f32>,
    /// 1 is off.
    pub repetition_penalty: Option<f32>,
    /// 0 is off.
    pub presence_penalty: Option<f32>,
    /// 0 is off.
    pub frequency_penalty: Option<f32>,
    /// Fixes the draws.
    pub seed: Option<u64>,
    /// Added to logits, by token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Log-probabilities of the drawn tokens, with so many alternatives.
    pub logprobs: Option<u8>,
    /// Go on past the model's stop tokens (extension `ignore_eos`, for benches).
    pub ignore_stop_tokens: bool,
    /// Parameters that were given, do not change the answer and are not looked at.
    pub ignored: Vec<String>,
}
