package main

import "testing"

func TestBuildText(t *testing.T) {
	for _, test := range []struct {
		build           build
		text, userAgent string
	}{
		{
			build{Version: "v0.4.0", Commit: "1a2b3c4d5e6f7081a2b3", Time: "2026-11-30T03:15:00Z", GoVersion: "go1.26.8", Platform: "linux/arm64"},
			"weir v0.4.0 commit 1a2b3c4d5e6f7081a2b3 of 2026-11-30T03:15:00Z go1.26.8 linux/arm64",
			"weir/v0.4.0 (linux/arm64; commit 1a2b3c4d5e6f; 2026-11-30T03:15:00Z)",
		},
		{
			build{Version: "v0.4.0+dirty", Commit: "1a2b", Modified: true, GoVersion: "go1.26.8", Platform: "linux/arm"},
			"weir v0.4.0+dirty commit 1a2b-dirty go1.26.8 linux/arm",
			"weir/v0.4.0+dirty (linux/arm; commit 1a2b)",
		},
		{build{Version: "(devel)", GoVersion: "go1.26.8", Platform: "linux/amd64"}, "weir (devel) go1.26.8 linux/amd64", "weir/devel (linux/amd64)"},
	} {
		if got := test.build.String(); got != test.text {
			t.Errorf("%+v is told as %q; want %q", test.build, got, test.text)
		}
		if got := test.build.userAgent(); got != test.userAgent {
			t.Errorf("%+v names itself %q; want %q", test.build, got, test.userAgent)
		}
	}
}
