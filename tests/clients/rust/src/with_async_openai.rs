//! async-openai: chat completions, embeddings and responses.

use crate::told::{self, step, Pieces, Seen};
use async_openai::config::OpenAIConfig;
use async_openai::types::chat::{
    ChatCompletionMessageToolCalls, ChatCompletionRequestUserMessage, ChatCompletionTool,
    ChatCompletionToolChoiceOption, ChatCompletionTools, CreateChatCompletionRequest,
    CreateChatCompletionRequestArgs, FunctionObjectArgs, ToolChoiceOptions,
};
use async_openai::types::embeddings::CreateEmbeddingRequestArgs;
use async_openai::types::responses::{CreateResponseArgs, ResponseStreamEvent};
use async_openai::Client;
use futures::StreamExt;
use serde_json::Value;

struct Here(Client<OpenAIConfig>);

fn asked(model: &str, tokens: u32) -> Seen<CreateChatCompletionRequestArgs> {
    let message = ChatCompletionRequestUserMessage::from(told::ASK);
    let mut request = CreateChatCompletionRequestArgs::default();
    #[allow(deprecated)] // the older name of the field is the one that all servers know
    request
        .model(model)
        .messages([message.into()])
        .max_tokens(tokens)
        .temperature(0.0);
    Ok(request)
}

impl Here {
    fn new(base: &str, key: &str) -> Self {
        let config = OpenAIConfig::new()
            .with_api_base(format!("{base}/v1"))
            .with_api_key(key);
        Self(Client::with_config(config))
    }

    async fn list(&self) -> Seen<Vec<String>> {
        let models = self.0.models().list().await?;
        Ok(models.data.into_iter().map(|model| model.id).collect())
    }

    async fn say(&self, model: &str) -> Seen<String> {
        self.ask(asked(model, told::MOST_TOKENS)?.build()?).await
    }

    async fn ask(&self, request: CreateChatCompletionRequest) -> Seen<String> {
        let answer = self.0.chat().create(request).await?;
        Ok(answer.choices[0]
            .message
            .content
            .clone()
            .unwrap_or_default())
    }

    async fn stream(&self, model: &str, tokens: u32) -> Seen<Vec<String>> {
        let mut chunks = self
            .0
            .chat()
            .create_stream(asked(model, tokens)?.build()?)
            .await?;
        let mut pieces = Pieces::new(model);
        while let Some(chunk) = chunks.next().await {
            for choice in chunk?.choices {
                pieces.add(choice.delta.content.unwrap_or_default());
            }
        }
        Ok(pieces.found)
    }

    async fn call(&self) -> Seen<Vec<Value>> {
        let function = FunctionObjectArgs::default()
            .name("weather")
            .parameters(told::weather())
            .build()?;
        let request = asked(told::CALLER, told::MOST_IN_A_CALL)?
            .tools([ChatCompletionTools::Function(ChatCompletionTool {
                function,
            })])
            .tool_choice(ChatCompletionToolChoiceOption::Mode(
                ToolChoiceOptions::Required,
            ))
            .build()?;
        let answer = self.0.chat().create(request).await?;
        match &answer.choices[0].message.tool_calls.as_deref() {
            Some([ChatCompletionMessageToolCalls::Function(call)]) => {
                let arguments = serde_json::from_str(&call.function.arguments)?;
                Ok(vec![call.function.name.clone().into(), arguments])
            }
            _ => Err("no call".into()),
        }
    }

    async fn embed(&self) -> Seen<Vec<usize>> {
        let request = CreateEmbeddingRequestArgs::default()
            .model(told::EMBED)
            .input(["a", "b"])
            .build()?;
        let found = self.0.embeddings().create(request).await?;
        Ok(found
            .data
            .iter()
            .map(|vector| vector.embedding.len())
            .collect())
    }

    async fn fail_in_a_response(&self) -> Seen<Vec<String>> {
        let asked = CreateResponseArgs::default()
            .model(told::ENDLESS)
            .input(told::ASK)
            .build()?;
        let mut events = self.0.responses().create_stream(asked).await?;
        let mut pieces = Pieces::new(told::ENDLESS);
        while let Some(event) = events.next().await {
            match event? {
                ResponseStreamEvent::ResponseOutputTextDelta(delta) => pieces.add(delta.delta),
                ResponseStreamEvent::ResponseFailed(last) => {
                    let error = last.response.error.ok_or("no error")?;
                    return Err(error.message.into());
                }
                _ => {}
            }
        }
        Ok(pieces.found)
    }

    /// Two turns: an answer, and a stream that goes on from it.
    async fn converse(&self) -> Seen<Vec<String>> {
        let mut asked = CreateResponseArgs::default();
        asked
            .model(told::CHAT)
            .max_output_tokens(told::MOST_TOKENS)
            .temperature(0.0);
        let first = self
            .0
            .responses()
            .create(asked.input(told::ASK).build()?)
            .await?;
        let again = asked
            .input("Again.")
            .previous_response_id(first.id.clone())
            .build()?;
        let mut events = self.0.responses().create_stream(again).await?;
        let (mut second, mut whole) = (String::new(), None);
        while let Some(event) = events.next().await {
            match event? {
                ResponseStreamEvent::ResponseOutputTextDelta(delta) => second += &delta.delta,
                ResponseStreamEvent::ResponseCompleted(last) => whole = last.response.output_text(),
                ResponseStreamEvent::ResponseIncomplete(last) => {
                    whole = last.response.output_text()
                } // no tokens
                _ => {}
            }
        }
        if whole.as_ref() != Some(&second) {
            return Err(format!("deltas {second:?}, but in the end {whole:?}").into());
        }
        Ok(vec![first.output_text().unwrap_or_default(), second])
    }
}

pub async fn run(base: &str) {
    let (here, stranger) = (Here::new(base, told::KEY), Here::new(base, told::WRONG_KEY));
    step("list", here.list()).await;
    step("chat", here.say(told::CHAT)).await;
    step("stream", here.stream(told::CHAT, told::MOST_TOKENS)).await;
    step("responses", here.converse()).await;
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
    step("failing_response", here.fail_in_a_response()).await;
}
