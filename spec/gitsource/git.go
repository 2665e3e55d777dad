package gitsource

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"weir/spec"
	"weir/spec/gitrev"
)

// maxTime limits one run of git. A repository can include a file that never ends.
const maxTime = time.Minute

// git runs plumbing commands in one repository. The repository may be hostile. So its configuration, hooks and refs are
// not obeyed where they could run a program, fetch, or give a commit other content.
type git struct {
	repo *gitrev.Repo
}

// openGit finds the work tree that contains dir, by the same rule as gitrev. Git's own rule would also accept a bare
// repository on the way up. A submodule is refused: a commit of the outer repository can add it in the place of a
// directory, and then its author decides what its branches hold.
func openGit(dir string) (*git, error) {
	repo := gitrev.Find(dir)
	if repo == nil {
		return nil, errors.New("not in a Git work tree")
	}
	if outer := repo.Outer(); outer != nil {
		return nil, fmt.Errorf("the Git repository %s lies in the work tree of another one, %s, which does not vouch for its revisions; give -f a directory of the outer one, or compare with --against DIR",
			repo.WorkTree, outer.WorkTree)
	}
	if err := repo.CheckFiles(); err != nil {
		return nil, fmt.Errorf("the Git repository: %w", err)
	}
	return &git{repo}, nil
}

// command returns a command that has not started. The command line wins over the repository's configuration.
func (g *git) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", append([]string{
		"--git-dir=" + g.repo.Dir(), "--work-tree=" + g.repo.WorkTree, "--no-pager", "--no-replace-objects", "--literal-pathspecs",
		"-c", "safe.bareRepository=explicit", "-c", "protocol.allow=never", "-c", "core.hooksPath=" + os.DevNull,
		"-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false", "-c", "core.commitGraph=false",
		"-c", "advice.graftFileDeprecated=false",
	}, args...)...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	// Keep nothing of the environment but the PATH. In a hook it names another repository, and the user's configuration
	// may name programs. GIT_ALLOW_PROTOCOL wins over protocol.NAME.allow of the repository.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_ATTR_NOSYSTEM=1", "GIT_GRAFT_FILE=" + os.DevNull,
		"GIT_ALLOW_PROTOCOL=none", "GIT_NO_LAZY_FETCH=1", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0"}
	return cmd
}

// output returns the output of a command, which is short.
func (g *git) output(ctx context.Context, args ...string) (out string, err error) {
	err = g.stream(ctx, "", func(in *bufio.Reader) error {
		data, err := io.ReadAll(io.LimitReader(in, 4096))
		out = strings.TrimSpace(string(data))
		return err
	}, args...)
	return out, err
}

// stream runs a command and gives its output to read. If read fails, the command ends.
func (g *git) stream(ctx context.Context, stdin string, read func(*bufio.Reader) error, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	cmd := g.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return g.explain(err, args[0])
	}
	readErr := read(bufio.NewReaderSize(out, 1<<16))
	if readErr != nil {
		cancel()
	}
	waitErr := cmd.Wait()
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("git took more than %v", maxTime)
	case readErr != nil && (waitErr == nil || !errors.Is(readErr, io.EOF)):
		return readErr // if git ended too early, its own error is better
	default:
		return g.explain(waitErr, args[0])
	}
}

// errNone means that git found nothing of a name.
var errNone = errors.New("finds none")

// explain returns the error of a command of git. What git itself says is left out, because it can quote a file that the
// repository's configuration includes.
func (g *git) explain(err error, command string) error {
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return errors.New("the git program is needed to read a Git revision, and is not installed")
	case errors.As(err, &exit) && exit.ExitCode() == 1 && (command == "rev-parse" || command == "show-ref"):
		return fmt.Errorf("git %s %w", command, errNone)
	case errors.As(err, &exit):
		return fmt.Errorf("git %s failed with %v; run git fsck in %s to see why", command, exit.ProcessState, g.repo.WorkTree)
	}
	return err
}

// blob is a requested file.
type blob struct {
	id   string
	name string // of the file, for errors
}

// blobs returns the content of blobs, in order. That of one which is larger than maxFileSize is nil.
func (g *git) blobs(ctx context.Context, wanted []blob) ([][]byte, error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	var ids strings.Builder
	for _, b := range wanted {
		ids.WriteString(b.id + "\n")
	}
	var data [][]byte
	err := g.stream(ctx, ids.String(), func(in *bufio.Reader) (err error) {
		data, err = parseBatch(in, wanted)
		return err
	}, "cat-file", "--batch")
	return data, err
}

// parseBatch reads the output of "git cat-file --batch".
func parseBatch(in *bufio.Reader, wanted []blob) ([][]byte, error) {
	blobs := make([][]byte, len(wanted))
	total := int64(0)
	for i, b := range wanted {
		head, err := in.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("%s: read git object %s: %w", b.name, b.id, err)
		}
		parts := strings.Fields(head)
		if len(parts) != 3 || parts[1] != "blob" {
			return nil, fmt.Errorf("%s: git says %q (in a partial clone, fetch it first)", b.name, strings.TrimSpace(head))
		}
		size, err := strconv.ParseInt(parts[2], 10, 64)
		if err == nil && size > maxFileSize {
			if _, err := io.CopyN(io.Discard, in, size+1); err != nil {
				return nil, fmt.Errorf("%s: read git object %s: %w", b.name, b.id, err)
			}
			continue
		}
		if total += size; err != nil || size < 0 || total > maxTotalSize {
			return nil, spec.Problems{{Origin: spec.Origin{File: b.name}, Detail: fmt.Sprintf("too large: all files together may have %d bytes", maxTotalSize)}}
		}
		data := make([]byte, size+1)
		if _, err := io.ReadFull(in, data); err != nil {
			return nil, fmt.Errorf("%s: read git object %s: %w", b.name, b.id, err)
		}
		blobs[i] = data[:size:size]
	}
	return blobs, nil
}
