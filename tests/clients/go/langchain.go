package main

import (
	"context"

	"github.com/tmc/langchaingo/embeddings"
	"github.com/tmc/langchaingo/llms"
	"github.com/tmc/langchaingo/llms/openai"
)

type langChain struct{ llm *openai.LLM }

func newLangChain(key string) langChain {
	llm, err := openai.New(
		openai.WithBaseURL(base+"/v1"),
		openai.WithToken(key),
		openai.WithModel(chat),
		openai.WithEmbeddingModel(embed),
	)
	if err != nil {
		panic(err)
	}
	return langChain{llm}
}

func (l langChain) ask(model string, tokens int, more ...llms.CallOption) (*llms.ContentChoice, error) {
	talk := []llms.MessageContent{llms.TextParts(llms.ChatMessageTypeHuman, ask)}
	options := append(more, llms.WithModel(model), llms.WithMaxTokens(tokens))
	answer, err := l.llm.GenerateContent(context.Background(), talk, options...)
	if err != nil {
		return nil, err
	}
	return answer.Choices[0], nil
}

func (l langChain) say(model string) (string, error) {
	answer, err := l.ask(model, mostTokens)
	if err != nil {
		return "", err
	}
	return answer.Content, nil
}

func (l langChain) stream(model string, tokens int) (any, error) {
	told := pieces{model: model}
	hear := func(_ context.Context, piece []byte) error {
		told.add(string(piece))
		return nil
	}
	_, err := l.ask(model, tokens, llms.WithStreamingFunc(hear))
	return told.found, err
}

func (l langChain) call() (any, error) {
	function := &llms.FunctionDefinition{Name: "weather", Parameters: weather}
	tools := llms.WithTools([]llms.Tool{{Type: "function", Function: function}})
	answer, err := l.ask(caller, mostInACall, tools, llms.WithToolChoice("required"))
	if err != nil {
		return nil, err
	}
	use := answer.ToolCalls[0].FunctionCall
	return used(use.Name, []byte(use.Arguments))
}

func (l langChain) embed() (any, error) {
	embedder, err := embeddings.NewEmbedder(l.llm)
	if err != nil {
		return nil, err
	}
	found, err := embedder.EmbedDocuments(context.Background(), []string{"a", "b"})
	if err != nil {
		return nil, err
	}
	return []int{len(found[0]), len(found[1])}, nil
}

func withLangChain() {
	here := newLangChain(key)
	step("chat", saying(here.say, chat))
	step("stream", func() (any, error) { return here.stream(chat, mostTokens) })
	step("tools", here.call)
	step("swap", func() (any, error) { return swap(here.say) })
	step("embed", here.embed)
	step("unknown", saying(here.say, nobody))
	step("wrong_key", saying(newLangChain(wrongKey).say, chat))
	step("broken", saying(here.say, broken))
	step("too_long", saying(here.say, narrow))
	step("crashing", saying(here.say, crashing))
	step("breaking", func() (any, error) { return here.stream(endless, plenty) })
}
