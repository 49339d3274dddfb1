import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What a client library sees, told line by line to the test that judges it. */
final class Told {
    static final String KEY = "secret", WRONG_KEY = "wrong";
    static final String CHAT = "chat", OTHER = "other", CALLER = "caller", EMBED = "embed";
    static final String NOBODY = "nobody", BROKEN = "broken", ENDLESS = "endless";
    static final String NARROW = "narrow", CRASHING = "CRASH-BY-ABORT";
    static final String ASK = "Say hello.";
    static final int MOST_TOKENS = 12, MOST_IN_A_CALL = 200, PLENTY = 100_000;
    static final ObjectMapper JSON = new ObjectMapper();

    interface Seen {
        Object see() throws Exception;
    }

    interface Chat {
        String say(String model) throws Exception;
    }

    private Told() {}

    /** What is seen, or the error that is thrown. */
    static void step(String name, Seen seen) throws Exception {
        try {
            tell(name, "saw", seen.see());
        } catch (Exception error) {
            tell(name, "error", error.toString());
        }
    }

    /** One after the other: a swap each. */
    static List<String> swap(Chat chat) throws Exception {
        return List.of(chat.say(OTHER), chat.say(CHAT));
    }

    /** The tool's name, and its arguments. */
    static List<Object> used(String name, String arguments) throws Exception {
        return List.of(name, JSON.readValue(arguments, Map.class));
    }

    /** The pieces of a stream. At the first one of the endless stream the test lets that fail. */
    static final class Pieces {
        final List<String> found = new ArrayList<>();
        private final String model;

        Pieces(String model) {
            this.model = model;
        }

        void add(String piece) {
            if (piece.isEmpty()) return;
            found.add(piece);
            if (model.equals(ENDLESS) && found.size() == 1) tell("failing", "begun", true);
        }
    }

    private static void tell(String step, String what, Object value) {
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("step", step);
        line.put(what, value);
        try {
            System.out.println(JSON.writeValueAsString(line));
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }
}
