package main_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"weir/backends/netlab"
)

// scenario is one file of testdata/scenarios. README.md there describes the format.
type scenario struct {
	name  string
	opts  options
	steps []step
}

// options is a scenario's scenario.yaml.
type options struct {
	// SkipModes names the modes the scenario does not apply to, each with the reason.
	SkipModes map[string]string `json:"skipModes"`
	// Pods, Bridge and VethPrefix are those of netlab.Topology.
	Pods       int    `json:"pods"`
	Bridge     string `json:"bridge"`
	VethPrefix string `json:"vethPrefix"`
	// Serve lists the ports that every pod answers on; [80, 8080] if it is empty.
	Serve []uint16 `json:"serve"`
	// ServeNode lists the ports that the node itself answers on, as a pod in the host's network does.
	ServeNode []uint16 `json:"serveNode"`
	// Run holds what others do on a host before weir starts, as lines for a shell.
	Run map[string][]string `json:"run"`
	// Flags are added to every weir command line.
	Flags []string `json:"flags"`
	// Lives reports that weir is not killed between the steps, because proxied connections would end with it.
	Lives bool `json:"lives"`
}

// step is one state of the input: files that are written over those of the step before, or removed if they are empty, and
// what then holds.
type step struct {
	name  string
	files map[string]string
	rows  []row
	// probes is its probes.yaml, or nil.
	probes *probes
}

// probes is what probes of endpoints meet.
type probes struct {
	// Answer lists the hosts that accept connections on probedPort.
	Answer []string `json:"answer"`
	// Status is what weir status says of the probes of Services in the namespace default.
	Status map[string]string `json:"status"`
}

// row is one line of a step's expect.yaml. It holds for every combination of From, To and Protocol.
type row struct {
	From     list `json:"from"`
	To       list `json:"to"`
	Protocol list `json:"protocol"`

	// Answers lists the pods that answer, as "pod1" or "pod1:8080": all of them, and no others. Their shares are equal.
	Answers []string `json:"answers"`
	// Share replaces Answers where shares differ.
	Share map[string]int `json:"share"`
	// Source is what servers see: "self" (the one who asked), "node" (any of the node's addresses), or an address.
	Source string `json:"source"`
	// Result is the outcome where no pod answers: refused, dropped, unreachable, or unserved.
	Result netlab.Outcome `json:"result"`
	// Connections is how many connections are made; chosen to suit the number of answers if it is 0.
	Connections int `json:"connections"`

	// Sticky reports that all connections meet the same one of Answers.
	Sticky bool `json:"sticky"`
	// ForgetsAfter is a pause after which a sticky client may meet another one.
	ForgetsAfter duration `json:"forgetsAfter"`
	// Flow names a connection that is opened when a step first mentions it, and asked again in later steps.
	Flow string `json:"flow"`
	// HTTP is the status that a GET of /healthz returns.
	HTTP int `json:"http"`

	// inTurn reports that the mode takes endpoints in turn rather than by chance.
	inTurn bool
}

// list is a string or a list of strings.
type list []string

func (l *list) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*l = list{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(l))
}

type duration time.Duration

func (d *duration) UnmarshalJSON(b []byte) error {
	s, err := strconv.Unquote(string(b))
	if err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	*d = duration(v)
	return err
}

const scenarioDir = "../../testdata/scenarios"

// readScenarios reads all scenarios, sorted by name.
func readScenarios(t *testing.T) []scenario {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(scenarioDir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	var all []scenario
	for _, f := range files {
		s, err := readScenario(f)
		if err != nil {
			t.Fatalf("%s: %v", filepath.Base(f), err)
		}
		all = append(all, s)
	}
	return all
}

func readScenario(file string) (scenario, error) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		return scenario{}, err
	}
	s := scenario{name: strings.TrimSuffix(filepath.Base(file), ".txtar")}
	if len(archive.Comment) == 0 {
		return s, fmt.Errorf("says not what it shows, in the lines before the first file")
	}
	steps := map[string]*step{}
	for _, f := range archive.Files {
		if f.Name == "scenario.yaml" {
			if err := yaml.UnmarshalStrict(f.Data, &s.opts); err != nil {
				return s, fmt.Errorf("%s: %w", f.Name, err)
			}
			continue
		}
		dir, rest, ok := strings.Cut(f.Name, "/")
		if !ok || !strings.HasPrefix(dir, "step-") {
			return s, fmt.Errorf("%s is neither scenario.yaml nor in a directory step-N", f.Name)
		}
		if steps[dir] == nil {
			steps[dir] = &step{name: dir, files: map[string]string{}}
		}
		switch rest {
		case "probes.yaml":
			if err := yaml.UnmarshalStrict(f.Data, &steps[dir].probes); err != nil {
				return s, fmt.Errorf("%s: %w", f.Name, err)
			}
			continue
		case "expect.yaml":
		default:
			steps[dir].files[rest] = string(f.Data)
			continue
		}
		if steps[dir].rows, err = readRows(f.Data); err != nil {
			return s, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	for i := range len(steps) {
		st := steps[fmt.Sprintf("step-%d", i+1)]
		if st == nil || len(st.rows) == 0 {
			return s, fmt.Errorf("step-%d is missing or expects nothing", i+1)
		}
		s.steps = append(s.steps, *st)
	}
	if len(s.steps) == 0 {
		return s, fmt.Errorf("no steps")
	}
	return s, s.addDefaults()
}

func readRows(b []byte) ([]row, error) {
	var rows []row
	if err := yaml.UnmarshalStrict(b, &rows); err != nil {
		return nil, err
	}
	for i := range rows {
		if err := rows[i].validate(); err != nil {
			return nil, fmt.Errorf("row %d: %w", i+1, err)
		}
	}
	return rows, nil
}

// validate sets defaults and refuses what cannot be meant.
func (r *row) validate() error {
	if len(r.From) == 0 || len(r.To) == 0 {
		return fmt.Errorf("from and to are required")
	}
	if len(r.Protocol) == 0 {
		r.Protocol = list{string(netlab.TCP)}
	}
	for _, to := range r.To {
		if _, err := netip.ParseAddrPort(to); err != nil {
			return err
		}
	}
	for _, p := range r.Protocol {
		if !slices.Contains([]netlab.Protocol{netlab.TCP, netlab.UDP, netlab.SCTP}, netlab.Protocol(p)) {
			return fmt.Errorf("protocol %q is not TCP, UDP or SCTP", p)
		}
	}
	kinds := 0
	for _, set := range []bool{len(r.Answers) > 0, len(r.Share) > 0, r.Result != "", r.HTTP != 0} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return fmt.Errorf("exactly one of answers, share, result and http is required")
	}
	if r.Result != "" && !slices.Contains([]netlab.Outcome{netlab.Refused, netlab.Dropped, netlab.Unreachable, unserved}, r.Result) {
		return fmt.Errorf("result %q is not refused, dropped, unreachable or unserved", r.Result)
	}
	return nil
}

// addDefaults puts the config and the Node that most scenarios share into the first step, unless it has its own.
func (s *scenario) addDefaults() error {
	files, err := filepath.Glob(filepath.Join(scenarioDir, "defaults", "*.yaml"))
	if err != nil {
		return err
	}
	for _, f := range files {
		name := path.Base(f)
		if _, own := s.steps[0].files[name]; own {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		s.steps[0].files[name] = string(b)
	}
	if len(s.opts.Serve) == 0 {
		s.opts.Serve = []uint16{80, 8080}
	}
	return nil
}
