package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/responses"
)

type openAI struct{ client openai.Client }

func newOpenAI(key string) openAI {
	return openAI{openai.NewClient(option.WithBaseURL(base+"/v1"), option.WithAPIKey(key))}
}

// The error of this library is a status alone; what was said stands in a field of it.
func inWords(saw any, err error) (any, error) {
	var said *openai.Error
	if errors.As(err, &said) {
		return nil, errors.New(said.Message)
	}
	return saw, err
}

func (o openAI) asked(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:       model,
		Messages:    []openai.ChatCompletionMessageParamUnion{openai.UserMessage(ask)},
		MaxTokens:   openai.Int(mostTokens),
		Temperature: openai.Float(0),
	}
}

func (o openAI) list() (any, error) {
	page, err := o.client.Models.List(context.Background())
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, model := range page.Data {
		names = append(names, model.ID)
	}
	return names, nil
}

func (o openAI) say(model string) (string, error) {
	answer, err := o.client.Chat.Completions.New(context.Background(), o.asked(model))
	if err != nil {
		return "", err
	}
	return answer.Choices[0].Message.Content, nil
}

func (o openAI) stream(model string, tokens int64) (any, error) {
	asked := o.asked(model)
	asked.MaxTokens = openai.Int(tokens)
	chunks := o.client.Chat.Completions.NewStreaming(context.Background(), asked)
	told := pieces{model: model}
	for chunks.Next() {
		for _, choice := range chunks.Current().Choices {
			told.add(choice.Delta.Content)
		}
	}
	return told.found, chunks.Err()
}

func (o openAI) call() (any, error) {
	asked := o.asked(caller)
	asked.MaxTokens = openai.Int(mostInACall)
	function := openai.FunctionDefinitionParam{Name: "weather", Parameters: weather}
	asked.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(function)}
	required := openai.ChatCompletionToolChoiceOptionAutoRequired
	asked.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: param.NewOpt(string(required))}
	answer, err := o.client.Chat.Completions.New(context.Background(), asked)
	if err != nil {
		return nil, err
	}
	use := answer.Choices[0].Message.ToolCalls[0].Function
	return used(use.Name, []byte(use.Arguments))
}

func (o openAI) embed() (any, error) {
	input := openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a", "b"}}
	found, err := o.client.Embeddings.New(context.Background(), openai.EmbeddingNewParams{Model: embed, Input: input})
	if err != nil {
		return nil, err
	}
	return []int{len(found.Data[0].Embedding), len(found.Data[1].Embedding)}, nil
}

func (o openAI) inResponses(input string) responses.ResponseNewParams {
	return responses.ResponseNewParams{
		Model:           chat,
		Input:           responses.ResponseNewParamsInputUnion{OfString: openai.String(input)},
		MaxOutputTokens: openai.Int(mostTokens),
		Temperature:     openai.Float(0),
	}
}

// Two turns: an answer, and a stream that goes on from it.
func (o openAI) converse() (any, error) {
	first, err := o.client.Responses.New(context.Background(), o.inResponses(ask))
	if err != nil {
		return nil, err
	}
	again := o.inResponses("Again.")
	again.PreviousResponseID = openai.String(first.ID)
	events := o.client.Responses.NewStreaming(context.Background(), again)
	second, whole := "", ""
	for events.Next() {
		switch event := events.Current().AsAny().(type) {
		case responses.ResponseTextDeltaEvent:
			second += event.Delta
		case responses.ResponseCompletedEvent:
			whole = event.Response.OutputText()
		case responses.ResponseIncompleteEvent: // for the want of tokens
			whole = event.Response.OutputText()
		}
	}
	if second != whole {
		return nil, fmt.Errorf("deltas %q, but in the end %q", second, whole)
	}
	return []string{first.OutputText(), second}, events.Err()
}

// The library has no types of its own for what a schema describes: the text is read by whoever asked.
func (o openAI) parse() (any, error) {
	asked := o.inResponses(ask)
	asked.MaxOutputTokens = openai.Int(mostInACall)
	asked.Text.Format = responses.ResponseFormatTextConfigParamOfJSONSchema("place", weather)
	answer, err := o.client.Responses.New(context.Background(), asked)
	if err != nil {
		return nil, err
	}
	var place map[string]string
	err = json.Unmarshal([]byte(answer.OutputText()), &place)
	return place, err
}

func (o openAI) failInAResponse() (any, error) {
	asked := o.inResponses(ask)
	asked.Model, asked.MaxOutputTokens = endless, param.Opt[int64]{}
	events := o.client.Responses.NewStreaming(context.Background(), asked)
	told := pieces{model: endless}
	for events.Next() {
		switch event := events.Current().AsAny().(type) {
		case responses.ResponseTextDeltaEvent:
			told.add(event.Delta)
		case responses.ResponseFailedEvent:
			return nil, errors.New(event.Response.Error.Message)
		}
	}
	return told.found, events.Err()
}

func (o openAI) count() (any, error) {
	input := responses.InputTokenCountParamsInputUnion{OfString: openai.String(ask)}
	counted, err := o.client.Responses.InputTokens.Count(
		context.Background(), responses.InputTokenCountParams{Model: openai.String(chat), Input: input},
	)
	if err != nil {
		return nil, err
	}
	return counted.InputTokens, nil
}

func withOpenAI() {
	here := newOpenAI(key)
	step("list", here.list)
	step("chat", saying(here.say, chat))
	step("stream", func() (any, error) { return here.stream(chat, mostTokens) })
	step("responses", here.converse)
	step("parse", here.parse)
	step("count", here.count)
	step("tools", here.call)
	step("swap", func() (any, error) { return swap(here.say) })
	step("embed", here.embed)
	step("unknown", func() (any, error) { return inWords(here.say(nobody)) })
	step("wrong_key", func() (any, error) { return inWords(newOpenAI(wrongKey).say(chat)) })
	step("broken", func() (any, error) { return inWords(here.say(broken)) })
	step("too_long", func() (any, error) { return inWords(here.say(narrow)) })
	step("crashing", func() (any, error) { return inWords(here.say(crashing)) })
	step("failing", func() (any, error) { return here.stream(endless, plenty) })
	step("failing_response", here.failInAResponse)
}
