//! rig, by chat completions and by responses.

use crate::told::{self, step, Pieces, Seen};
use futures::StreamExt;
use rig_core::completion::{CompletionRequest, CompletionResponse, ToolDefinition};
use rig_core::driver::DynModel;
use rig_core::message::{ToolChoice, ToolName};
use rig_core::operation::Completion;
use rig_core::providers::openai::{OpenAI, OpenAIConfig, Route};
use rig_core::streaming::{Item, StreamEvent};
use serde_json::Value;

struct Here(OpenAI);

fn asked(tokens: u32) -> CompletionRequest {
    CompletionRequest::new(told::ASK)
        .max_tokens(u64::from(tokens))
        .temperature(0.0)
}

impl Here {
    fn new(base: &str, key: &str, route: Route) -> Self {
        let config = OpenAIConfig::new(key)
            .with_base_url(format!("{base}/v1"))
            .with_route(route);
        Self(config.client())
    }

    fn model(&self, name: &str) -> DynModel<Completion> {
        self.0.completion(name).erase()
    }

    async fn list(&self) -> Seen<Vec<String>> {
        let models = self.0.list_models().await?;
        Ok(models.data.into_iter().map(|model| model.id).collect())
    }

    async fn say(&self, model: &str) -> Seen<String> {
        let answer: CompletionResponse = self.model(model).call(asked(told::MOST_TOKENS)).await?;
        Ok(answer.text())
    }

    async fn stream(&self, model: &str, tokens: u32) -> Seen<Vec<String>> {
        let mut events = self.model(model).stream(asked(tokens))?;
        let mut pieces = Pieces::new(model);
        while let Some(event) = events.next().await {
            if let Item::Event(StreamEvent::Text { text, .. }) = event? {
                pieces.add(text);
            }
        }
        events.finish().await?;
        Ok(pieces.found)
    }

    async fn call(&self) -> Seen<Vec<Value>> {
        let weather = ToolDefinition::new(ToolName::new("weather")?, "Of a city.", told::weather());
        let request = asked(told::MOST_IN_A_CALL)
            .tool(weather)
            .tool_choice(ToolChoice::Required);
        let answer: CompletionResponse = self.model(told::CALLER).call(request).await?;
        let call = answer.tool_calls().next().ok_or("no call")?;
        let arguments = Value::Object(call.function.arguments.clone());
        Ok(vec![call.function.name.as_str().into(), arguments])
    }

    async fn embed(&self) -> Seen<Vec<usize>> {
        let texts = vec!["a".to_owned(), "b".to_owned()];
        let found = self.0.embedding(told::EMBED, None).call(texts).await?;
        Ok(found.embeddings.iter().map(|e| e.vec.len()).collect())
    }
}

pub async fn run(base: &str, route: Route) {
    let here = Here::new(base, told::KEY, route);
    let stranger = Here::new(base, told::WRONG_KEY, route);
    step("list", here.list()).await;
    step("chat", here.say(told::CHAT)).await;
    step("stream", here.stream(told::CHAT, told::MOST_TOKENS)).await;
    step("tools", here.call()).await;
    step("swap", async {
        Ok(vec![
            here.say(told::OTHER).await?,
            here.say(told::CHAT).await?,
        ])
    })
    .await;
    step("embed", here.embed()).await;
    step("unknown", here.say(told::NOBODY)).await;
    step("wrong_key", stranger.say(told::CHAT)).await;
    step("broken", here.say(told::BROKEN)).await;
    step("too_long", here.say(told::NARROW)).await;
    step("crashing", here.say(told::CRASHING)).await;
    step("failing", here.stream(told::ENDLESS, told::PLENTY)).await;
}
