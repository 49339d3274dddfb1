package main

import (
	"context"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

type claude struct{ client anthropic.Client }

func newClaude(key string) claude {
	return claude{anthropic.NewClient(option.WithBaseURL(base), option.WithAPIKey(key))}
}

func talk() []anthropic.MessageParam {
	return []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(ask))}
}

func (c claude) asked(model string, tokens int64) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{Model: model, MaxTokens: tokens, Messages: talk()}
}

func (c claude) list() (any, error) {
	models := c.client.Models.ListAutoPaging(context.Background(), anthropic.ModelListParams{})
	names := []string{}
	for models.Next() {
		names = append(names, models.Current().ID)
	}
	return names, models.Err()
}

func (c claude) say(model string) (string, error) {
	answer, err := c.client.Messages.New(context.Background(), c.asked(model, mostTokens))
	if err != nil {
		return "", err
	}
	return answer.Content[0].Text, nil
}

func (c claude) stream(model string, tokens int64) (any, error) {
	events := c.client.Messages.NewStreaming(context.Background(), c.asked(model, tokens))
	told := pieces{model: model}
	whole := anthropic.Message{}
	for events.Next() {
		event := events.Current()
		if err := whole.Accumulate(event); err != nil {
			return nil, err
		}
		told.add(event.Delta.Text)
	}
	return told.found, events.Err()
}

func (c claude) call() (any, error) {
	asked := c.asked(caller, mostInACall)
	schema := anthropic.ToolInputSchemaParam{
		Properties: map[string]any{"city": city},
		Required:   []string{"city"},
	}
	asked.Tools = []anthropic.ToolUnionParam{anthropic.ToolUnionParamOfTool(schema, "weather")}
	asked.ToolChoice = anthropic.ToolChoiceUnionParam{OfAny: &anthropic.ToolChoiceAnyParam{}}
	answer, err := c.client.Messages.New(context.Background(), asked)
	if err != nil {
		return nil, err
	}
	for _, block := range answer.Content {
		if use, ok := block.AsAny().(anthropic.ToolUseBlock); ok {
			return used(use.Name, []byte(use.Input))
		}
	}
	return answer.Content, nil
}

func (c claude) count() (any, error) {
	asked := anthropic.MessageCountTokensParams{Model: chat, Messages: talk()}
	counted, err := c.client.Messages.CountTokens(context.Background(), asked)
	if err != nil {
		return nil, err
	}
	return counted.InputTokens, nil
}

func withAnthropic() {
	here := newClaude(key)
	step("list", here.list)
	step("chat", saying(here.say, chat))
	step("stream", func() (any, error) { return here.stream(chat, mostTokens) })
	step("count", here.count)
	step("tools", here.call)
	step("swap", func() (any, error) { return swap(here.say) })
	step("unknown", saying(here.say, nobody))
	step("wrong_key", saying(newClaude(wrongKey).say, chat))
	step("broken", saying(here.say, broken))
	step("too_long", saying(here.say, narrow))
	step("crashing", saying(here.say, crashing))
	step("failing", func() (any, error) { return here.stream(endless, plenty) })
}
