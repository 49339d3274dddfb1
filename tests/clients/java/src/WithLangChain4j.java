import dev.langchain4j.agent.tool.ToolSpecification;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.data.segment.TextSegment;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.request.ToolChoice;
import dev.langchain4j.model.chat.request.json.JsonObjectSchema;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.openai.OpenAiChatModel;
import dev.langchain4j.model.openai.OpenAiEmbeddingModel;
import dev.langchain4j.model.openai.OpenAiModelCatalog;
import dev.langchain4j.model.openai.OpenAiStreamingChatModel;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;

/** LangChain4j, with its client of OpenAI's API. */
final class WithLangChain4j {
    private static final Duration LONG = Duration.ofMinutes(10);
    private final String base;
    private final String key;

    private WithLangChain4j(String base, String key) {
        this.base = base + "/v1";
        this.key = key;
    }

    private OpenAiChatModel model(String model, int tokens) {
        return OpenAiChatModel.builder()
                .baseUrl(base)
                .apiKey(key)
                .modelName(model)
                .maxTokens(tokens)
                .timeout(LONG)
                .build();
    }

    private List<String> list() {
        var catalog = OpenAiModelCatalog.builder().baseUrl(base).apiKey(key).build();
        return catalog.listModels().stream().map(model -> model.name()).toList();
    }

    private String say(String model) {
        return model(model, Told.MOST_TOKENS).chat(Told.ASK);
    }

    private List<String> stream(String model, int tokens) throws Exception {
        var streaming = OpenAiStreamingChatModel.builder()
                .baseUrl(base)
                .apiKey(key)
                .modelName(model)
                .maxTokens(tokens)
                .timeout(LONG)
                .build();
        var told = new Told.Pieces(model);
        var ended = new CompletableFuture<ChatResponse>();
        streaming.chat(Told.ASK, new StreamingChatResponseHandler() {
            @Override
            public void onPartialResponse(String piece) {
                told.add(piece);
            }

            @Override
            public void onCompleteResponse(ChatResponse answer) {
                ended.complete(answer);
            }

            @Override
            public void onError(Throwable error) {
                ended.completeExceptionally(error);
            }
        });
        try {
            ended.get();
        } catch (ExecutionException error) {
            throw new IllegalStateException(error.getCause());
        }
        return told.found;
    }

    private List<Object> call() throws Exception {
        var city = JsonObjectSchema.builder()
                .addEnumProperty("city", List.of("Paris", "Rome"))
                .required("city")
                .build();
        var asked = ChatRequest.builder()
                .messages(UserMessage.from(Told.ASK))
                .toolSpecifications(ToolSpecification.builder().name("weather").parameters(city).build())
                .toolChoice(ToolChoice.REQUIRED)
                .build();
        var answer = model(Told.CALLER, Told.MOST_IN_A_CALL).chat(asked);
        var use = answer.aiMessage().toolExecutionRequests().get(0);
        return Told.used(use.name(), use.arguments());
    }

    private List<Integer> embed() {
        var embedding = OpenAiEmbeddingModel.builder()
                .baseUrl(base)
                .apiKey(key)
                .modelName(Told.EMBED)
                .timeout(LONG)
                .build();
        var found = embedding.embedAll(List.of(TextSegment.from("a"), TextSegment.from("b"))).content();
        return found.stream().map(vector -> vector.vector().length).toList();
    }

    static void run(String base) throws Exception {
        var here = new WithLangChain4j(base, Told.KEY);
        Told.step("list", here::list);
        Told.step("chat", () -> here.say(Told.CHAT));
        Told.step("stream", () -> here.stream(Told.CHAT, Told.MOST_TOKENS));
        Told.step("tools", here::call);
        Told.step("swap", () -> Told.swap(here::say));
        Told.step("embed", here::embed);
        Told.step("unknown", () -> here.say(Told.NOBODY));
        Told.step("wrong_key", () -> new WithLangChain4j(base, Told.WRONG_KEY).say(Told.CHAT));
        Told.step("broken", () -> here.say(Told.BROKEN));
        Told.step("too_long", () -> here.say(Told.NARROW));
        Told.step("crashing", () -> here.say(Told.CRASHING));
        Told.step("breaking", () -> here.stream(Told.ENDLESS, Told.PLENTY));
    }
}
