package findings

import (
	"io"
	"strings"

	"weir/spec"
)

// The parts of SARIF 2.1.0 that weir writes.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool    sarifTool     `json:"tool"`
		Results []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version,omitempty"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID                   string             `json:"id"`
		ShortDescription     sarifMessage       `json:"shortDescription"`
		DefaultConfiguration sarifConfiguration `json:"defaultConfiguration"`
	}
	sarifConfiguration struct {
		Level string `json:"level"`
	}
	sarifMessage struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifMessage    `json:"message"`
		Locations []sarifLocation `json:"locations,omitempty"`
	}
	sarifLocation struct {
		PhysicalLocation sarifPhysical `json:"physicalLocation"`
	}
	sarifPhysical struct {
		ArtifactLocation sarifArtifact `json:"artifactLocation"`
		Region           *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
)

var sarifLevels = map[spec.Severity]string{spec.SeverityError: "error", spec.SeverityWarning: "warning", spec.SeverityInfo: "note"}

// rules returns all kinds of notices with their meaning.
func rules() []sarifRule {
	all := []sarifRule{{string(spec.Invalid), sarifMessage{"The input cannot be used: weir keeps what is in force."}, sarifConfiguration{sarifLevels[spec.SeverityError]}}}
	for _, k := range spec.NoticeKinds() {
		if !k.Compares {
			all = append(all, sarifRule{string(k.ID), sarifMessage{k.Meaning}, sarifConfiguration{sarifLevels[k.Severity]}})
		}
	}
	return all
}

func (r Report) writeSARIF(w io.Writer, version string) error {
	run := sarifRun{Tool: sarifTool{sarifDriver{Name: "weir", Version: version, Rules: rules()}}, Results: []sarifResult{}}
	index := map[spec.NoticeID]int{}
	for i, rule := range run.Tool.Driver.Rules {
		index[spec.NoticeID(rule.ID)] = i
	}
	for _, n := range r.Notices {
		result := sarifResult{RuleID: string(n.ID()), RuleIndex: index[n.ID()], Level: sarifLevels[n.Severity()], Message: sarifMessage{strings.ToValidUTF8(message(n), "\uFFFD")}}
		if file, line := place(n); file != "" {
			at := sarifPhysical{ArtifactLocation: sarifArtifact{fileURI(file)}}
			if line > 0 {
				at.Region = &sarifRegion{line}
			}
			result.Locations = []sarifLocation{{at}}
		}
		run.Results = append(run.Results, result)
	}
	return spec.WriteJSON(w, sarifLog{
		Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run},
	}, false)
}
