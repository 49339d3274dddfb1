//! The router's address, without `/v1`, and the library's name.

mod told;
mod with_async_openai;
mod with_genai;
mod with_rig;

use genai::adapter::AdapterKind;
use rig_core::providers::openai::Route;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let asked: Vec<String> = std::env::args().collect();
    match asked[2].as_str() {
        "async-openai" => with_async_openai::run(&asked[1]).await,
        "genai" => with_genai::run(&asked[1], AdapterKind::OpenAI).await,
        "genai-responses" => with_genai::run(&asked[1], AdapterKind::OpenAIResp).await,
        "rig" => with_rig::run(&asked[1], Route::Chat).await,
        "rig-responses" => with_rig::run(&asked[1], Route::Responses).await,
        other => panic!("no {other} here"),
    }
}
