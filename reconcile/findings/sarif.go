package findings

import (
	"io"
	"strings"

	"weir/reconcile/review"
)

// The parts of SARIF 2.1.0 that are written.
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

var sarifLevels = map[string]string{SeverityError: "error", SeverityWarning: "warning", SeverityInfo: "note"}

// rules are all that a Finding can have, with what they mean.
func rules() []sarifRule {
	all := []sarifRule{
		{string(Invalid), sarifMessage{"The input cannot be used: weir keeps what is in force."}, sarifConfiguration{sarifLevels[SeverityError]}},
		{string(Notice), sarifMessage{"The input is valid, and probably not what was meant."}, sarifConfiguration{sarifLevels[SeverityWarning]}},
	}
	for _, k := range review.Kinds() {
		if k.Offline {
			all = append(all, sarifRule{string(k.ID), sarifMessage{k.Meaning}, sarifConfiguration{sarifLevels[k.Severity]}})
		}
	}
	return all
}

func (r Report) writeSARIF(w io.Writer, version string) error {
	run := sarifRun{Tool: sarifTool{sarifDriver{Name: "weir", Version: version, Rules: rules()}}, Results: []sarifResult{}}
	index := map[Rule]int{}
	for i, rule := range run.Tool.Driver.Rules {
		index[Rule(rule.ID)] = i
	}
	for _, f := range r.Findings {
		result := sarifResult{RuleID: string(f.Rule), RuleIndex: index[f.Rule], Level: sarifLevels[f.Severity], Message: sarifMessage{strings.ToValidUTF8(f.message(), "\uFFFD")}}
		if f.File != "" {
			at := sarifPhysical{ArtifactLocation: sarifArtifact{fileURI(f.File)}}
			if f.Line > 0 {
				at.Region = &sarifRegion{f.Line}
			}
			result.Locations = []sarifLocation{{at}}
		}
		run.Results = append(run.Results, result)
	}
	return encode(w, sarifLog{
		Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run},
	})
}
