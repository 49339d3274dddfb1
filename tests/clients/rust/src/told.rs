//! What a client library sees, told line by line to the test that judges it.

use serde_json::{json, Value};
use std::error::Error;
use std::future::Future;

pub const KEY: &str = "secret";
pub const WRONG_KEY: &str = "wrong";
pub const CHAT: &str = "chat";
pub const OTHER: &str = "other";
pub const CALLER: &str = "caller";
pub const EMBED: &str = "embed";
pub const NOBODY: &str = "nobody";
pub const BROKEN: &str = "broken";
pub const NARROW: &str = "narrow";
pub const CRASHING: &str = "CRASH-BY-ABORT";
pub const ENDLESS: &str = "endless";
pub const ASK: &str = "Say hello.";
pub const MOST_TOKENS: u32 = 12;
pub const MOST_IN_A_CALL: u32 = 200;
pub const PLENTY: u32 = 100_000;

pub type Seen<T> = Result<T, Box<dyn Error>>;

pub fn weather() -> Value {
    json!({
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
    })
}

/// What is seen, or the error that is returned.
pub async fn step<T: Into<Value>>(name: &str, seen: impl Future<Output = Seen<T>>) {
    match seen.await {
        Ok(saw) => tell(name, "saw", saw.into()),
        Err(error) => tell(name, "error", error.to_string().into()),
    }
}

/// The pieces of a stream. At the first one of the endless stream the test lets that fail.
pub struct Pieces<'a> {
    pub model: &'a str,
    pub found: Vec<String>,
}

impl<'a> Pieces<'a> {
    pub fn new(model: &'a str) -> Self {
        Self {
            model,
            found: Vec::new(),
        }
    }

    pub fn add(&mut self, piece: String) {
        if piece.is_empty() {
            return;
        }
        self.found.push(piece);
        if self.model == ENDLESS && self.found.len() == 1 {
            tell("failing", "begun", true.into());
        }
    }
}

fn tell(step: &str, what: &str, value: Value) {
    let (step, what) = (Value::from(step), Value::from(what));
    println!("{{\"step\": {step}, {what}: {value}}}");
}
