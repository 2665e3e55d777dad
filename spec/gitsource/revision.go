package gitsource

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// resolve returns the commit of a revision. A tag origin/main would win over the remote's branch of that name, so a name
// that several refs have is refused.
func (g *git) resolve(ctx context.Context, rev string) (commit string, err error) {
	if err = g.checkName(ctx, baseName(rev)); err == nil {
		commit, err = g.output(ctx, "rev-parse", "--verify", "--quiet", "--end-of-options", rev+"^{commit}")
	}
	switch {
	case errors.Is(err, errAmbiguous):
		return "", fmt.Errorf("revision %q: %w", rev, err)
	case err != nil:
		return "", fmt.Errorf("no revision %q in Git: %w (in a shallow clone, fetch it first: git fetch origin BRANCH)", rev, err)
	}
	return commit, nil
}

// baseName returns the name that a revision such as main~3, v1^{commit} or main@{1} begins with.
func baseName(rev string) string {
	end := strings.IndexAny(rev, "^~:")
	if at := strings.Index(rev, "@{"); at >= 0 && (end < 0 || at < end) {
		end = at
	}
	if end < 0 {
		return rev
	}
	return rev[:end]
}

var (
	// pseudoRef matches HEAD and the like, which win over all refs.
	pseudoRef = regexp.MustCompile(`^(@|[A-Z_]*HEAD)$`)
	// commitID matches a whole commit ID, which wins over all refs.
	commitID = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	// shortID finds the short ID of an object in a name, as git does: v1.2-3-gabcdef has one too.
	shortID = regexp.MustCompile(`^(?:.*-g)?([0-9a-f]{4,63})$`)
)

var errAmbiguous = errors.New("the name is ambiguous")

// checkName returns an error if git would choose between several meanings of a name.
func (g *git) checkName(ctx context.Context, name string) error {
	switch {
	case name == "", pseudoRef.MatchString(name), commitID.MatchString(name):
		return nil
	case strings.HasPrefix(name, "refs/"): // without this very ref, git would look for refs/tags/refs/...
		_, err := g.has(ctx, name)
		return err
	}
	var refs []string
	for _, format := range []string{"refs/%s", "refs/tags/%s", "refs/heads/%s", "refs/remotes/%s", "refs/remotes/%s/HEAD"} {
		ref := fmt.Sprintf(format, name)
		switch found, err := g.has(ctx, ref); {
		case found:
			refs = append(refs, "git:"+ref)
		case !errors.Is(err, errNone):
			return err
		}
	}
	if id := shortID.FindStringSubmatch(name); id != nil && len(refs) > 0 {
		if objects, err := g.output(ctx, "rev-parse", "--disambiguate="+id[1]); err == nil && objects != "" {
			first, _, _ := strings.Cut(objects, "\n")
			refs = append(refs, "git:"+first)
		}
	}
	if len(refs) > 1 {
		return fmt.Errorf("%w; choose one of %s", errAmbiguous, strings.Join(refs, ", "))
	}
	return nil
}

// has reports whether a ref exists. If it does not, the error is errNone.
func (g *git) has(ctx context.Context, ref string) (bool, error) {
	_, err := g.output(ctx, "show-ref", "--verify", "--quiet", "--", ref)
	return err == nil, err
}
