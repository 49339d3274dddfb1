package main

import (
	"context"
	"errors"
	"io"

	"github.com/sashabaranov/go-openai"
)

type goOpenAI struct{ client *openai.Client }

func newGoOpenAI(key string) goOpenAI {
	config := openai.DefaultConfig(key)
	config.BaseURL = base + "/v1"
	return goOpenAI{openai.NewClientWithConfig(config)}
}

func (o goOpenAI) asked(model string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{
		Model:     model,
		Messages:  []openai.ChatCompletionMessage{{Role: "user", Content: ask}},
		MaxTokens: mostTokens,
	}
}

func (o goOpenAI) list() (any, error) {
	found, err := o.client.ListModels(context.Background())
	names := []string{}
	for _, model := range found.Models {
		names = append(names, model.ID)
	}
	return names, err
}

func (o goOpenAI) say(model string) (string, error) {
	answer, err := o.client.CreateChatCompletion(context.Background(), o.asked(model))
	if err != nil {
		return "", err
	}
	return answer.Choices[0].Message.Content, nil
}

func (o goOpenAI) stream(model string, tokens int) (any, error) {
	asked := o.asked(model)
	asked.MaxTokens = tokens
	chunks, err := o.client.CreateChatCompletionStream(context.Background(), asked)
	if err != nil {
		return nil, err
	}
	defer chunks.Close()
	told := pieces{model: model}
	for {
		chunk, err := chunks.Recv()
		if errors.Is(err, io.EOF) {
			return told.found, nil
		}
		if err != nil {
			return nil, err
		}
		for _, choice := range chunk.Choices {
			told.add(choice.Delta.Content)
		}
	}
}

func (o goOpenAI) call() (any, error) {
	asked := o.asked(caller)
	asked.MaxTokens = mostInACall
	function := &openai.FunctionDefinition{Name: "weather", Parameters: weather}
	asked.Tools = []openai.Tool{{Type: openai.ToolTypeFunction, Function: function}}
	asked.ToolChoice = "required"
	answer, err := o.client.CreateChatCompletion(context.Background(), asked)
	if err != nil {
		return nil, err
	}
	use := answer.Choices[0].Message.ToolCalls[0].Function
	return used(use.Name, []byte(use.Arguments))
}

func (o goOpenAI) embed() (any, error) {
	asked := openai.EmbeddingRequestStrings{Model: embed, Input: []string{"a", "b"}}
	found, err := o.client.CreateEmbeddings(context.Background(), asked)
	if err != nil {
		return nil, err
	}
	return []int{len(found.Data[0].Embedding), len(found.Data[1].Embedding)}, nil
}

func withGoOpenAI() {
	here := newGoOpenAI(key)
	step("list", here.list)
	step("chat", saying(here.say, chat))
	step("stream", func() (any, error) { return here.stream(chat, mostTokens) })
	step("tools", here.call)
	step("swap", func() (any, error) { return swap(here.say) })
	step("embed", here.embed)
	step("unknown", saying(here.say, nobody))
	step("wrong_key", saying(newGoOpenAI(wrongKey).say, chat))
	step("broken", saying(here.say, broken))
	step("too_long", saying(here.say, narrow))
	step("crashing", saying(here.say, crashing))
	step("failing", func() (any, error) { return here.stream(endless, plenty) })
}
