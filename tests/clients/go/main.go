// What a client library sees, told line by line to the test that judges it.
package main

import (
	"encoding/json"
	"os"
)

const (
	key, wrongKey              = "secret", "wrong"
	chat, other, caller, embed = "chat", "other", "caller", "embed"
	nobody, broken, endless    = "nobody", "broken", "endless"
	narrow, crashing           = "narrow", "CRASH-BY-ABORT"
	ask                        = "Say hello."
	mostTokens                 = 12
	mostInACall                = 200
	plenty                     = 100_000
)

// The router's address, without /v1.
var base = os.Args[1]

var city = map[string]any{"type": "string", "enum": []string{"Paris", "Rome"}}
var weather = map[string]any{
	"type":       "object",
	"properties": map[string]any{"city": city},
	"required":   []string{"city"},
}

type call func() (any, error)

type line struct {
	Step  string `json:"step"`
	Saw   any    `json:"saw,omitempty"`
	Error string `json:"error,omitempty"`
	Begun bool   `json:"begun,omitempty"`
}

func tell(told line) {
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		panic(err)
	}
}

// What is seen, or the error that is returned.
func step(name string, see call) {
	saw, err := see()
	if err != nil {
		tell(line{Step: name, Error: err.Error()})
		return
	}
	tell(line{Step: name, Saw: saw})
}

// The pieces of a stream. At the first one of the endless stream the test lets that fail.
type pieces struct {
	model string
	found []string
}

func (p *pieces) add(piece string) {
	if piece == "" {
		return
	}
	p.found = append(p.found, piece)
	if p.model == endless && len(p.found) == 1 {
		tell(line{Step: "failing", Begun: true})
	}
}

// One after the other: a swap each.
func swap(say func(model string) (string, error)) (any, error) {
	first, err := say(other)
	if err != nil {
		return nil, err
	}
	second, err := say(chat)
	return []string{first, second}, err
}

func saying(say func(model string) (string, error), model string) call {
	return func() (any, error) { return say(model) }
}

// The tool's name, and its arguments.
func used(name string, arguments []byte) (any, error) {
	var read any
	err := json.Unmarshal(arguments, &read)
	return []any{name, read}, err
}

func main() {
	libraries := map[string]func(){
		"openai-go":        withOpenAI,
		"go-openai":        withGoOpenAI,
		"anthropic-sdk-go": withAnthropic,
		"langchaingo":      withLangChain,
		"ollama":           withOllama,
	}
	libraries[os.Args[2]]()
}
