final class Main {
    /** The router's address without /v1, and the library's name. */
    public static void main(String[] args) throws Exception {
        switch (args[1]) {
            case "openai-java" -> WithOpenAi.run(args[0]);
            case "langchain4j" -> WithLangChain4j.run(args[0]);
            default -> throw new IllegalArgumentException(args[1]);
        }
        System.exit(0); // their threads would live on
    }
}
