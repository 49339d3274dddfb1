//! genai, with its adapters of OpenAI's chat completions and responses.

use crate::told::{self, step, Pieces, Seen};
use futures::StreamExt;
use genai::adapter::AdapterKind;
use genai::chat::{ChatMessage, ChatOptions, ChatRequest, ChatStreamEvent, Tool, ToolChoice};
use genai::resolver::{AuthData, Endpoint, ServiceTargetResolver};
use genai::{Client, ModelIden, ServiceTarget};
use serde_json::Value;

struct Here(Client);

fn options(tokens: u32) -> ChatOptions {
    ChatOptions::default()
        .with_max_tokens(tokens)
        .with_temperature(0.0)
}

fn talk() -> ChatRequest {
    ChatRequest::new(vec![ChatMessage::user(told::ASK)])
}

impl Here {
    fn new(base: &str, key: &str, kind: AdapterKind) -> Self {
        let (base, key) = (format!("{base}/v1/"), key.to_owned());
        let here = ServiceTargetResolver::from_resolver_fn(
            move |asked: ServiceTarget| -> Result<ServiceTarget, genai::resolver::Error> {
                Ok(ServiceTarget {
                    endpoint: Endpoint::from_owned(base.clone()),
                    auth: AuthData::from_single(key.clone()),
                    model: ModelIden::new(kind, asked.model.model_name),
                })
            },
        );
        Self(
            Client::builder()
                .with_service_target_resolver(here)
                .build()
                .expect("a client"),
        )
    }

    async fn say(&self, model: &str) -> Seen<String> {
        let answer = self
            .0
            .exec_chat(model, talk(), Some(&options(told::MOST_TOKENS)))
            .await?;
        Ok(answer.into_first_text().unwrap_or_default())
    }

    async fn stream(&self, model: &str, tokens: u32) -> Seen<Vec<String>> {
        let mut events = self
            .0
            .exec_chat_stream(model, talk(), Some(&options(tokens)))
            .await?
            .stream;
        let mut pieces = Pieces::new(model);
        while let Some(event) = events.next().await {
            if let ChatStreamEvent::Chunk(chunk) = event? {
                pieces.add(chunk.content);
            }
        }
        Ok(pieces.found)
    }

    async fn call(&self) -> Seen<Vec<Value>> {
        let asked = talk().with_tools(vec![Tool::new("weather").with_description("Of a city.").with_schema(told::weather())]);
        let options = options(told::MOST_IN_A_CALL).with_tool_choice(ToolChoice::Required);
        let answer = self
            .0
            .exec_chat(told::CALLER, asked, Some(&options))
            .await?;
        let call = answer
            .into_tool_calls()
            .into_iter()
            .next()
            .ok_or("no call")?;
        Ok(vec![call.fn_name.into(), call.fn_arguments])
    }

    async fn embed(&self) -> Seen<Vec<usize>> {
        let found = self
            .0
            .embed_batch(told::EMBED, vec!["a".into(), "b".into()], None)
            .await?;
        Ok(found
            .embeddings
            .iter()
            .map(|vector| vector.dimensions())
            .collect())
    }
}

pub async fn run(base: &str, kind: AdapterKind) {
    let here = Here::new(base, told::KEY, kind);
    let stranger = Here::new(base, told::WRONG_KEY, kind);
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
    if kind == AdapterKind::OpenAI {
        step("embed", here.embed()).await;
    }
    step("unknown", here.say(told::NOBODY)).await;
    step("wrong_key", stranger.say(told::CHAT)).await;
    step("broken", here.say(told::BROKEN)).await;
    step("too_long", here.say(told::NARROW)).await;
    step("crashing", here.say(told::CRASHING)).await;
    step("failing", here.stream(told::ENDLESS, told::PLENTY)).await;
}
