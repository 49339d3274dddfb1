package main

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/ollama/ollama/api"
)

type ollamaAPI struct{ client *api.Client }

// The library has no option for a key: its HTTP client adds it.
type withKey string

func (key withKey) RoundTrip(asked *http.Request) (*http.Response, error) {
	asked = asked.Clone(asked.Context())
	asked.Header.Set("Authorization", "Bearer "+string(key))
	return http.DefaultTransport.RoundTrip(asked)
}

func newOllama(key string) ollamaAPI {
	address, err := url.Parse(base)
	if err != nil {
		panic(err)
	}
	return ollamaAPI{api.NewClient(address, &http.Client{Transport: withKey(key)})}
}

func (o ollamaAPI) list() (any, error) {
	found, err := o.client.List(context.Background())
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, model := range found.Models {
		names = append(names, strings.TrimSuffix(model.Name, ":latest"))
	}
	return names, nil
}

func (o ollamaAPI) show() (any, error) {
	found, err := o.client.Show(context.Background(), &api.ShowRequest{Model: chat})
	if err != nil {
		return nil, err
	}
	return found.Capabilities, nil
}

func (o ollamaAPI) stream(model string, tokens int) ([]string, error) {
	asked := &api.ChatRequest{
		Model:    model,
		Messages: []api.Message{{Role: "user", Content: ask}},
		Options:  map[string]any{"num_predict": tokens, "temperature": 0},
	}
	told := pieces{model: model}
	err := o.client.Chat(context.Background(), asked, func(line api.ChatResponse) error {
		told.add(line.Message.Content)
		return nil
	})
	return told.found, err
}

func (o ollamaAPI) say(model string) (string, error) {
	found, err := o.stream(model, mostTokens)
	return strings.Join(found, ""), err
}

func (o ollamaAPI) ps() (any, error) {
	found, err := o.client.ListRunning(context.Background())
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, model := range found.Models {
		names = append(names, model.Name)
	}
	return names, nil
}

func (o ollamaAPI) keepAndLetGo() (any, error) {
	reasons := []string{}
	for _, kept := range []api.Duration{{Duration: -1}, {Duration: 0}} {
		asked := &api.GenerateRequest{Model: chat, KeepAlive: &kept}
		err := o.client.Generate(context.Background(), asked, func(line api.GenerateResponse) error {
			reasons = append(reasons, line.DoneReason)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return reasons, nil
}

func (o ollamaAPI) embed() (any, error) {
	asked := &api.EmbedRequest{Model: embed, Input: []string{"a", "b"}}
	found, err := o.client.Embed(context.Background(), asked)
	if err != nil {
		return nil, err
	}
	return []int{len(found.Embeddings[0]), len(found.Embeddings[1])}, nil
}

func withOllama() {
	here := newOllama(key)
	step("list", here.list)
	step("show", here.show)
	step("chat", saying(here.say, chat))
	step("stream", func() (any, error) { return here.stream(chat, mostTokens) })
	step("swap", func() (any, error) { return swap(here.say) })
	step("ps", here.ps)
	step("keep_alive", here.keepAndLetGo)
	step("embed", here.embed)
	step("unknown", saying(here.say, nobody))
	step("broken", saying(here.say, broken))
	step("too_long", saying(here.say, narrow))
	step("crashing", saying(here.say, crashing))
	step("failing", func() (any, error) { return here.stream(endless, plenty) })
}
