//! The router's address, without `/v1`, and the library's name.

mod told;
mod with_async_openai;
mod with_genai;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let asked: Vec<String> = std::env::args().collect();
    match asked[2].as_str() {
        "async-openai" => with_async_openai::run(&asked[1]).await,
        "genai" => with_genai::run(&asked[1]).await,
        other => panic!("no {other} here"),
    }
}
