package apitest

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"
)

// AskKubeProxy gives the questions to kube-proxy's own code and returns an answer to each. The command kubeproxypeer,
// in the module that builds the servers, defines their form.
func AskKubeProxy[Question, Answer any](t testing.TB, questions []Question) []Answer {
	t.Helper()
	return Ask[Question, Answer](t, "kubeproxypeer", questions)
}

// Ask gives the questions to a program that answers each in a line of JSON, and returns the answers.
func Ask[Question, Answer any](t testing.TB, program string, questions []Question) []Answer {
	t.Helper()
	var in bytes.Buffer
	for _, q := range questions {
		if err := json.NewEncoder(&in).Encode(q); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), Binary(t, program))
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	answers := make([]Answer, len(questions))
	d := json.NewDecoder(bytes.NewReader(out))
	for i := range answers {
		if err := d.Decode(&answers[i]); err != nil {
			t.Fatalf("answer %d of %d: %v", i, len(questions), err)
		}
	}
	return answers
}
