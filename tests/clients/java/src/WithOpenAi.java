import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.JsonValue;
import com.openai.helpers.ResponseAccumulator;
import com.openai.models.FunctionDefinition;
import com.openai.models.FunctionParameters;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import com.openai.models.chat.completions.ChatCompletionToolChoiceOption;
import com.openai.models.embeddings.EmbeddingCreateParams;
import com.openai.models.responses.Response;
import com.openai.models.responses.ResponseCreateParams;
import com.openai.models.responses.ResponseFailedEvent;
import com.openai.models.responses.inputtokens.InputTokenCountParams;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/** OpenAI's SDK: chat completions, embeddings and responses. It checks every answer against its types. */
final class WithOpenAi {
    private final OpenAIClient client;

    private WithOpenAi(String base, String key) {
        client = OpenAIOkHttpClient.builder()
                .baseUrl(base + "/v1")
                .apiKey(key)
                .responseValidation(true)
                .build();
    }

    private static ChatCompletionCreateParams.Builder asked(String model, int tokens) {
        return ChatCompletionCreateParams.builder()
                .model(model)
                .addUserMessage(Told.ASK)
                .maxTokens(tokens)
                .temperature(0.0);
    }

    private List<String> list() {
        return client.models().list().data().stream().map(model -> model.id()).toList();
    }

    private String say(String model) {
        var answer = client.chat().completions().create(asked(model, Told.MOST_TOKENS).build());
        return answer.choices().get(0).message().content().orElse("");
    }

    private List<String> stream(String model, int tokens) {
        var told = new Told.Pieces(model);
        try (var chunks = client.chat().completions().createStreaming(asked(model, tokens).build())) {
            chunks.stream()
                    .flatMap(chunk -> chunk.choices().stream())
                    .forEach(choice -> choice.delta().content().ifPresent(told::add));
        }
        return told.found;
    }

    private List<Object> call() throws Exception {
        var city = Map.of("type", "string", "enum", List.of("Paris", "Rome"));
        var weather = FunctionParameters.builder()
                .putAdditionalProperty("type", JsonValue.from("object"))
                .putAdditionalProperty("properties", JsonValue.from(Map.of("city", city)))
                .putAdditionalProperty("required", JsonValue.from(List.of("city")))
                .build();
        var asked = asked(Told.CALLER, Told.MOST_IN_A_CALL)
                .addFunctionTool(FunctionDefinition.builder().name("weather").parameters(weather).build())
                .toolChoice(ChatCompletionToolChoiceOption.Auto.REQUIRED)
                .build();
        var message = client.chat().completions().create(asked).choices().get(0).message();
        var use = message.toolCalls().orElseThrow().get(0).asFunction().function();
        return Told.used(use.name(), use.arguments());
    }

    private List<Integer> embed() {
        var asked = EmbeddingCreateParams.builder().model(Told.EMBED).inputOfArrayOfStrings(List.of("a", "b"));
        var found = client.embeddings().create(asked.build()).data();
        return found.stream().map(vector -> vector.embedding().size()).toList();
    }

    private static ResponseCreateParams.Builder responding(String input) {
        return ResponseCreateParams.builder()
                .model(Told.CHAT)
                .input(input)
                .maxOutputTokens(Told.MOST_TOKENS)
                .temperature(0.0);
    }

    /** Two turns: an answer, and a stream that goes on from it. */
    private List<String> converse() {
        var first = client.responses().create(responding(Told.ASK).build());
        var again = responding("Again.").previousResponseId(first.id()).build();
        var whole = ResponseAccumulator.create();
        var told = new Told.Pieces(Told.CHAT);
        try (var events = client.responses().createStreaming(again)) {
            events.stream()
                    .peek(whole::accumulate)
                    .forEach(event -> event.outputTextDelta().ifPresent(delta -> told.add(delta.delta())));
        }
        var second = String.join("", told.found);
        if (!second.equals(text(whole.response()))) throw new IllegalStateException(second);
        return List.of(text(first), second);
    }

    private static String text(Response response) {
        return response.output().stream()
                .flatMap(item -> item.message().stream())
                .flatMap(message -> message.content().stream())
                .flatMap(content -> content.outputText().stream())
                .map(part -> part.text())
                .collect(Collectors.joining());
    }

    enum City {
        Paris,
        Rome
    }

    static final class Place {
        public City city;
    }

    private Object parse() {
        var asked = responding(Told.ASK).maxOutputTokens(Told.MOST_IN_A_CALL).text(Place.class);
        return client.responses().create(asked.build()).output().stream()
                .flatMap(item -> item.message().stream())
                .flatMap(message -> message.content().stream())
                .flatMap(content -> content.outputText().stream())
                .findFirst()
                .orElseThrow();
    }

    private List<String> failInAResponse() {
        var asked = ResponseCreateParams.builder().model(Told.ENDLESS).input(Told.ASK).build();
        var told = new Told.Pieces(Told.ENDLESS);
        try (var events = client.responses().createStreaming(asked)) {
            events.stream().forEach(event -> {
                event.outputTextDelta().ifPresent(delta -> told.add(delta.delta()));
                event.failed().ifPresent(WithOpenAi::raise);
            });
        }
        return told.found;
    }

    private static void raise(ResponseFailedEvent event) {
        throw new IllegalStateException(event.response().error().orElseThrow().message());
    }

    private long count() {
        var asked = InputTokenCountParams.builder().model(Told.CHAT).input(Told.ASK).build();
        return client.responses().inputTokens().count(asked).inputTokens();
    }

    static void run(String base) throws Exception {
        var here = new WithOpenAi(base, Told.KEY);
        Told.step("list", here::list);
        Told.step("chat", () -> here.say(Told.CHAT));
        Told.step("stream", () -> here.stream(Told.CHAT, Told.MOST_TOKENS));
        Told.step("responses", here::converse);
        Told.step("parse", here::parse);
        Told.step("count", here::count);
        Told.step("tools", here::call);
        Told.step("swap", () -> Told.swap(here::say));
        Told.step("embed", here::embed);
        Told.step("unknown", () -> here.say(Told.NOBODY));
        Told.step("wrong_key", () -> new WithOpenAi(base, Told.WRONG_KEY).say(Told.CHAT));
        Told.step("broken", () -> here.say(Told.BROKEN));
        Told.step("too_long", () -> here.say(Told.NARROW));
        Told.step("crashing", () -> here.say(Told.CRASHING));
        Told.step("failing", () -> here.stream(Told.ENDLESS, Told.PLENTY));
        Told.step("failing_response", here::failInAResponse);
    }
}
