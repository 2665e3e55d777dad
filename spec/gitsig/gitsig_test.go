package gitsig

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"weir/backends/netlab"
	"weir/spec/seed"
)

// repo is a Git repository, with keys beside it.
type repo struct {
	testing.TB
	dir string
}

func newRepo(t testing.TB) *repo {
	t.Helper()
	netlab.RequireProgram(t, "git")
	netlab.RequireProgram(t, "ssh-keygen")
	r := &repo{t, t.TempDir()}
	r.git("init", "-q", "-b", "main", ".")
	return r
}

func (r *repo) path(name string) string { return filepath.Join(r.dir, name) }

func (r *repo) run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "HOME="+r.dir, "SSH_AUTH_SOCK=",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (r *repo) must(name string, args ...string) string {
	r.Helper()
	out, err := r.run(name, args...)
	if err != nil {
		r.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return out
}

func (r *repo) git(args ...string) string { r.Helper(); return r.must("git", args...) }

// key makes a key and returns its public half, as a file of allowed signers has it.
func (r *repo) key(name string, args ...string) string {
	r.Helper()
	if len(args) == 0 {
		args = []string{"-t", "ed25519"}
	}
	r.must("ssh-keygen", append([]string{"-q", "-N", "", "-C", "", "-f", r.path(".git/" + name)}, args...)...)
	text, err := os.ReadFile(r.path(".git/" + name + ".pub"))
	if err != nil {
		r.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// commit makes a commit that the key signs, and returns its ID.
func (r *repo) commit(key string, args ...string) string {
	r.Helper()
	args = append([]string{"-c", "gpg.format=ssh", "-c", "user.signingKey=" + r.path(".git/"+key), "commit", "-q", "--allow-empty", "-S", "-m", "a change\n\nthat says why"}, args...)
	r.git(args...)
	return r.git("rev-parse", "HEAD")
}

// content returns the content of a commit.
func (r *repo) content(commit string) []byte {
	cmd := exec.Command("git", "cat-file", "commit", commit)
	cmd.Dir = r.dir
	out, err := cmd.Output()
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// put stores a commit as it is, and returns its ID.
func (r *repo) put(content []byte) string {
	r.Helper()
	if err := os.WriteFile(r.path(".git/content"), content, 0o600); err != nil {
		r.Fatal(err)
	}
	return r.git("hash-object", "-t", "commit", "-w", "--literally", ".git/content")
}

// judge returns what git says of a commit: whether it is signed by an allowed signer, and by whom.
func (r *repo) judge(commit, signers string) (good bool, principal, text string) {
	r.Helper()
	if err := os.WriteFile(r.path(".git/signers"), []byte(signers), 0o600); err != nil {
		r.Fatal(err)
	}
	text, err := r.run("git", "-c", "gpg.ssh.allowedSignersFile="+r.path(".git/signers"), "verify-commit", commit)
	_, principal, _ = strings.Cut(text, `signature for `)
	principal, _, _ = strings.Cut(principal, " with ")
	return err == nil, principal, text
}

// compare has git and Verify judge a commit, which must agree, and returns the error of Verify.
func (r *repo) compare(commit, signers string) error {
	r.Helper()
	good, principal, text := r.judge(commit, signers)
	s, problems := Parse("allowed_signers", []byte(signers))
	if len(problems) > 0 {
		r.Fatalf("%v in\n%s", problems, signers)
	}
	sig, err := s.Verify(r.content(commit))
	if good != (err == nil) || good && sig.Principal != principal {
		r.Errorf("git says %v, %q; Verify says %v, %v\n%s\nsigners:\n%s\n%s", good, principal, sig, err, text, signers, r.content(commit))
	}
	return err
}

func TestVerify(t *testing.T) {
	r := newRepo(t)
	kinds := map[string][]string{
		"ed25519": nil, "ecdsa256": {"-t", "ecdsa", "-b", "256"}, "ecdsa384": {"-t", "ecdsa", "-b", "384"},
		"ecdsa521": {"-t", "ecdsa", "-b", "521"}, "rsa": {"-t", "rsa", "-b", "2048"},
	}
	var all strings.Builder
	for name, args := range kinds {
		fmt.Fprintf(&all, "%s@example.com %s\n", name, r.key(name, args...))
	}
	other := r.key("other")
	for name := range kinds {
		commit := r.commit(name)
		if err := r.compare(commit, all.String()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := r.compare(commit, "*@example.com "+other); err == nil || !strings.Contains(err.Error(), "does not list") {
			t.Errorf("%s: an unlisted key: %v", name, err)
		}
	}
	if err := r.compare(r.commit("ed25519", "--amend"), all.String()); err != nil {
		t.Errorf("amended: %v", err)
	}
	r.git("checkout", "-q", "-b", "side", "HEAD~1")
	r.commit("rsa")
	r.git("checkout", "-q", "main")
	r.git("-c", "gpg.format=ssh", "-c", "user.signingKey="+r.path(".git/rsa"), "merge", "-q", "--no-ff", "-S", "-m", "both", "side")
	if err := r.compare("HEAD", all.String()); err != nil {
		t.Errorf("merge: %v", err)
	}
	r.git("merge-base", "--is-ancestor", "side", "HEAD")
	// A merge by a forge that signs nothing, of commits that are all signed.
	r.git("-c", "gpg.format=ssh", "commit", "-q", "--amend", "--no-edit", "--no-gpg-sign")
	if err := r.compare("HEAD", all.String()); err == nil || !strings.Contains(err.Error(), "is not signed") {
		t.Errorf("an unsigned merge: %v", err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	r := newRepo(t)
	key := "a@example.com " + r.key("key")
	commit := r.commit("key", "--date", "2026-01-02T03:04:05Z")
	content := string(r.content(commit))
	other := string(r.content(r.commit("key", "-m", "another")))
	armor := func(content string) string {
		_, signature, err := split([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		return string(signature)
	}
	with := func(content, signature string) string {
		old := "gpgsig " + strings.TrimSuffix(strings.ReplaceAll(armor(content), "\n", "\n "), " ")
		if !strings.Contains(content, old) {
			t.Fatalf("%q not in %q", old, content)
		}
		return strings.Replace(content, old, "gpgsig "+strings.TrimSuffix(strings.ReplaceAll(signature, "\n", "\n "), " "), 1)
	}
	sign := func(payload, namespace string, args ...string) string {
		if err := os.WriteFile(r.path(".git/payload"), []byte(payload), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(r.path(".git/payload.sig"))
		r.must("ssh-keygen", append([]string{"-Y", "sign", "-n", namespace, "-f", r.path(".git/key")}, append(args, r.path(".git/payload"))...)...)
		text, err := os.ReadFile(r.path(".git/payload.sig"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	payload, _, err := split([]byte(content))
	if err != nil {
		t.Fatal(err)
	}
	r.key("rsa", "-t", "rsa", "-b", "2048")
	for _, tt := range []struct {
		name, content, want string
	}{
		{"as it is", content, ""},
		{"signed by hand", with(content, sign(string(payload), "git")), ""},
		{"sha256", with(content, sign(string(payload), "git", "-O", "hashalg=sha256")), ""},
		{"unsigned", string(payload), "is not signed; sign it with an SSH key: git config gpg.format ssh, and git commit -S"},
		{"tree", strings.Replace(content, "tree 4", "tree 5", 1), "not of this commit"},
		{"message", strings.Replace(content, "why", "how", 1), "not of this commit"},
		{"committer", strings.Replace(content, "committer a", "committer b", 1), "not of this commit"},
		{"longer", content + "\n", "not of this commit"},
		{"parent", strings.Replace(content, "\nauthor", "\nparent "+commit+"\nauthor", 1), "not of this commit"},
		{"moved from another commit", with(content, armor(other)), "not of this commit"},
		{"namespace", with(content, sign(string(payload), "file")), "made for something else than Git"},
		{"signed a second time", strings.Replace(content, "gpgsig -", "gpgsig x\ngpgsig -", 1), "more than one signature"},
		{"OpenPGP", with(content, "-----BEGIN PGP SIGNATURE-----\n\niQEz\n-----END PGP SIGNATURE-----\n"), "OpenPGP, which weir does not verify; sign it with an SSH key"},
		{"X.509", with(content, "-----BEGIN SIGNED MESSAGE-----\nMIIN\n-----END SIGNED MESSAGE-----\n"), "X.509"},
		{"unknown armor", with(content, "-----BEGIN SOMETHING-----\nMIIN\n-----END SOMETHING-----\n"), "format that is not known"},
		{"cut short", with(content, strings.TrimSuffix(armor(content), "-----END SSH SIGNATURE-----\n")), "cannot be read"},
		{"no base64", with(content, strings.Replace(armor(content), "U1NI", "!!!!", 1)), "cannot be read"},
		{"version", with(content, reseal(t, armor(content), func(b []byte) []byte { b[9] = 2; return b })), "cannot be read"},
		{"magic", with(content, reseal(t, armor(content), func(b []byte) []byte { b[0] = 'X'; return b })), "cannot be read"},
		{"shortened", with(content, reseal(t, armor(content), func(b []byte) []byte { return b[:len(b)-1] })), "cannot be read"},
		{"no bytes", with(content, reseal(t, armor(content), func(b []byte) []byte { return nil })), "cannot be read"},
		{"no committer", strings.Replace(content, "\ncommitter", "\ncommitted", 1), "does not say when"},
		{"time out of range", strings.Replace(content, " +0000\ngpgsig", "99999999999 +0000\ngpgsig", 1), "does not say when"},
		{"signature in the message", string(payload) + "\ngpgsig " + strings.ReplaceAll(armor(content), "\n", "\n "), "is not signed"},
		{"signature of another hash only", strings.Replace(content, "gpgsig ", "gpgsig-sha256 ", 1), "is not signed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &repo{t, r.dir}
			got := r.compare(r.put([]byte(tt.content)), key)
			if tt.want == "" && got != nil || tt.want != "" && (got == nil || !strings.Contains(got.Error(), tt.want)) {
				t.Errorf("got %v, want %q", got, tt.want)
			}
		})
	}
	// What git would accept, and Verify does not.
	rsa, err := os.ReadFile(r.path(".git/rsa"))
	if err != nil {
		t.Fatal(err)
	}
	private, err := ssh.ParsePrivateKey(rsa)
	if err != nil {
		t.Fatal(err)
	}
	for algorithm, want := range map[string]string{ssh.KeyAlgoRSA: "RSA with SHA-1", ssh.KeyAlgoRSASHA256: "", ssh.KeyAlgoRSASHA512: ""} {
		signature := with(content, seal(t, payload, private.PublicKey(), func(data []byte) (*ssh.Signature, error) {
			return private.(ssh.AlgorithmSigner).SignWithAlgorithm(nil, data, algorithm)
		}))
		got := r.compare(r.put([]byte(signature)), "a "+string(ssh.MarshalAuthorizedKey(private.PublicKey())))
		if want == "" && got != nil || want != "" && (got == nil || !strings.Contains(got.Error(), want)) {
			t.Errorf("%s: %v", algorithm, got)
		}
	}
}

// seal makes an armored signature of a payload.
func seal(t *testing.T, payload []byte, key ssh.PublicKey, sign func([]byte) (*ssh.Signature, error)) string {
	t.Helper()
	hash := sha512.Sum512(payload)
	signed := append([]byte("SSHSIG"), ssh.Marshal(struct{ Namespace, Reserved, Hash, Sum string }{"git", "", "sha512", string(hash[:])})...)
	sig, err := sign(signed)
	if err != nil {
		t.Fatal(err)
	}
	blob := ssh.Marshal(struct {
		Magic                                           [6]byte
		Version                                         uint32
		Key, Namespace, Reserved, HashAlgorithm, Signed string
	}{[6]byte([]byte("SSHSIG")), 1, string(key.Marshal()), "git", "", "sha512", string(ssh.Marshal(sig))})
	return string(pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: blob}))
}

func reseal(t *testing.T, armored string, change func([]byte) []byte) string {
	t.Helper()
	block, _ := pem.Decode([]byte(armored))
	if block == nil {
		t.Fatal("no armor")
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: change(block.Bytes)}))
}

// TestSecurityKey signs as a security key does.
func TestSecurityKey(t *testing.T) {
	r := newRepo(t)
	r.key("key")
	payload, _, err := split(r.content(r.commit("key")))
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(public), "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	armored := seal(t, payload, key, func(data []byte) (*ssh.Signature, error) {
		application, message := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
		rest := []byte{1, 0, 0, 0, 7} // touched; the count
		return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(private, bytes.Join([][]byte{application[:], rest, message[:]}, nil)), Rest: rest}, nil
	})
	head, message, _ := strings.Cut(string(payload), "\n\n")
	commit := r.put([]byte(head + "\ngpgsig " + strings.ReplaceAll(strings.TrimSpace(armored), "\n", "\n ") + "\n\n" + message))
	if err := r.compare(commit, "a@example.com "+string(ssh.MarshalAuthorizedKey(key))); err != nil {
		t.Error(err)
	}
}

// TestCertificate signs with a certificate, which is refused, whatever the authority.
func TestCertificate(t *testing.T) {
	r := newRepo(t)
	authority := r.key("authority")
	key := r.key("key")
	r.must("ssh-keygen", "-q", "-s", r.path(".git/authority"), "-I", "id", "-n", "a@example.com", r.path(".git/key.pub"))
	commit := r.commit("key-cert.pub")
	signers := "*@example.com cert-authority " + authority + "\n"
	if good, _, text := r.judge(commit, signers); !good {
		t.Fatalf("git refuses the certificate: %s", text)
	}
	for _, list := range []string{signers, signers + "a@example.com " + key} {
		s, problems := Parse("allowed_signers", []byte(list))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if _, err := s.Verify(r.content(commit)); err == nil || !strings.Contains(err.Error(), "sign with a plain key of another type") {
			t.Errorf("got %v", err)
		}
	}
	// The key of an authority is no signer, and a signer beside an authority is one.
	for list, good := range map[string]bool{"a cert-authority " + key: false, signers + "a@example.com " + key: true} {
		if err := r.compare(r.commit("key"), list); (err == nil) != good {
			t.Errorf("%s: %v", list, err)
		}
	}
}

func TestSigners(t *testing.T) {
	r := newRepo(t)
	key, other := r.key("key"), r.key("other")
	t.Setenv("GIT_COMMITTER_DATE", "2026-03-04T05:06:07Z")
	commit := func() string { return r.commit("key") }()
	date := func() string { return r.git("log", "-1", "--format=%cI") }()
	if !strings.HasPrefix(date, "2026-03-04T05:06:07") {
		t.Fatal(date)
	}
	for _, tt := range []struct {
		name, signers string
		good          bool
	}{
		{"comment and empty lines", "# who\n\n  \na@example.com " + key, true},
		{"no line", "", false},
		{"options", `a@example.com namespaces="git" ` + key, true},
		{"two namespaces", `a@example.com namespaces="file,git" ` + key, true},
		{"other namespace", `a@example.com namespaces="file" ` + key, false},
		{"pattern of namespaces", `a@example.com namespaces="g*" ` + key, true},
		{"namespace refused", `a@example.com namespaces="*,!git" ` + key, false},
		{"no namespace", `a@example.com namespaces="" ` + key, false},
		{"valid after", `a@example.com valid-after="20260304050607Z" ` + key, true},
		{"too early", `a@example.com valid-after="20260304050608Z" ` + key, false},
		{"valid before", `a@example.com valid-before="20260304050607Z" ` + key, true},
		{"too late", `a@example.com valid-before="20260304050606Z" ` + key, false},
		{"date", `a@example.com valid-before="20260304Z" ` + key, false},
		{"minute", `a@example.com valid-before="202603040506Z" ` + key, false},
		{"next minute", `a@example.com valid-before="202603040507Z" ` + key, true},
		{"local time", `a@example.com valid-after="20260302" ` + key, true},
		{"all options", `a@example.com namespaces="git",valid-after="20260101Z",valid-before="20270101Z" ` + key, true},
		{"capitals", `a@example.com NAMESPACES="git",Valid-After="20260101Z" ` + key, true},
		{"expired, and again", "a@example.com valid-before=\"20250101Z\" " + key + "\na@example.com valid-after=\"20250101Z\" " + key, true},
		{"expired, and another", "a@example.com valid-before=\"20250101Z\" " + key + "\nb@example.com valid-after=\"20250101Z\" " + key, true},
		{"first without git, and another", "a@example.com namespaces=\"file\" " + key + "\nb@example.com " + key, false},
		{"first without git, and the same", "a@example.com namespaces=\"file\" " + key + "\na@example.com " + key, true},
		{"pattern", "*@example.com " + key, true},
		{"list", "b@example.com,a@example.com " + key, true},
		{"list with a negation", "*@example.com,!eve@example.com " + key, true},
		{"negation first", "!eve@example.com,*@example.com " + key, true},
		{"negation alone", "!eve@example.com " + key, false},
		{"negation of itself", "a@example.com,!a@example.com " + key, false},
		{"quoted", `"a b" ` + key, true},
		{"other key", "a@example.com " + other, false},
		{"both", "b@example.com " + other + "\na@example.com " + key, true},
		{"comment of the key", "a@example.com " + key + " laptop", true},
		{"tabs", "a@example.com\t" + strings.ReplaceAll(key, " ", "\t"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &repo{t, r.dir}
			if err := r.compare(commit, tt.signers); (err == nil) != tt.good {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestSignersFaults has lines that are refused, with their numbers. Git refuses what they would allow, or stops at them.
func TestSignersFaults(t *testing.T) {
	r := newRepo(t)
	key := r.key("key")
	commit := r.commit("key")
	kind, encoded, _ := strings.Cut(key, " ")
	for name, line := range map[string]string{
		"no key":                "a@example.com",
		"no principal":          key,
		"options without a key": `a@example.com namespaces="git"`,
		"unknown option":        "a@example.com no-touch-required " + key,
		"unquoted":              "a@example.com namespaces=git " + key,
		"quote without an end":  `a@example.com namespaces="git ` + key,
		"twice":                 `a@example.com namespaces="git",namespaces="git" ` + key,
		"no comma":              `a@example.com namespaces="git"valid-after="20200101" ` + key,
		"comma at the end":      `a@example.com namespaces="git", ` + key,
		"time":                  `a@example.com valid-after="yesterday" ` + key,
		"month":                 `a@example.com valid-after="20201301" ` + key,
		"before the epoch":      `a@example.com valid-after="19600101" ` + key,
		"order of times":        `a@example.com valid-after="20210101",valid-before="20200101" ` + key,
		"base64":                "a@example.com " + kind + " !" + encoded,
		"cut short":             "a@example.com " + kind + " " + encoded[:20],
		"another type":          "a@example.com ssh-rsa " + encoded,
		"DSA":                   "a@example.com ssh-dss " + encoded,
		"no key type":           "a@example.com ssh-pigeon " + encoded,
		"quoted principal":      `"a@example.com ` + key,
		"a private key":         "-----BEGIN OPENSSH PRIVATE KEY-----",
	} {
		s, problems := Parse("allowed_signers", []byte("# who\n"+line+"\n"))
		if len(problems) != 1 || problems[0].Origin.String() != "allowed_signers:2" || s != nil {
			t.Errorf("%s: %v", name, problems)
		}
		if good, _, text := r.judge(commit, line); good {
			t.Errorf("%s: git accepts it: %s", name, text)
		}
		for _, secret := range []string{encoded[:15], "yesterday", "pigeon"} {
			if strings.Contains(fmt.Sprint(problems), secret) {
				t.Errorf("%s: the problem has text of the file: %v", name, problems)
			}
		}
	}
	if _, problems := Parse("s", []byte(strings.Repeat("a "+key+"\n", maxSigners+1))); len(problems) != 1 {
		t.Errorf("too many lines: %v", problems)
	}
}

// TestRandomSigners compares with git over random files.
func TestRandomSigners(t *testing.T) {
	r := newRepo(t)
	rnd := seed.Rand(t)
	keys := []string{r.key("k0"), r.key("k1", "-t", "ecdsa"), r.key("k2")}
	type signed struct{ id, date string }
	var commits []signed
	for i, date := range []string{"2026-01-01T00:00:00Z", "2026-06-15T12:30:30Z", "2027-01-01T00:00:00Z", "2026-01-01T00:00:00+0300"} {
		t.Setenv("GIT_COMMITTER_DATE", date)
		for k := range keys {
			commits = append(commits, signed{r.commit(fmt.Sprint("k", k), "-m", fmt.Sprint(i)), date})
		}
	}
	pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
	some := func(most int, sep string, of ...string) string {
		var all []string
		for range 1 + rnd.IntN(most) {
			all = append(all, pick(of...))
		}
		return strings.Join(all, sep)
	}
	when := []string{"20260101Z", "20260615123030Z", "202606151230Z", "20260615", "20270101Z", "20260102", "20251231210000UTC"}
	line := func() string {
		principals := some(3, ",", "a", "b", "*", "a*", "?", "!a", "!b", "!*", "ab", "c?", "*b")
		var options []string
		if rnd.IntN(3) == 0 {
			options = append(options, fmt.Sprintf(`namespaces="%s"`, some(2, ",", "git", "file", "*", "!git", "g?t", "!file")))
		}
		switch rnd.IntN(5) {
		case 0:
			options = append(options, fmt.Sprintf(`valid-after="%s"`, pick(when...)))
		case 1:
			options = append(options, fmt.Sprintf(`valid-before="%s"`, pick(when...)))
		case 2:
			options = append(options, `valid-after="20260101Z",valid-before="20260616"`)
		}
		if rnd.IntN(8) == 0 {
			options = append(options, "cert-authority")
		}
		rnd.Shuffle(len(options), func(i, j int) { options[i], options[j] = options[j], options[i] })
		return strings.TrimSpace(principals+" "+strings.Join(options, ",")) + " " + pick(keys...) + pick("", " comment")
	}
	goods := 0
	n := 150
	if testing.Short() {
		n = 20
	}
	for range n {
		signers := ""
		for range 1 + rnd.IntN(4) {
			signers += pick(line(), line(), line(), "# nothing", "") + "\n"
		}
		if r.compare(commits[rnd.IntN(len(commits))].id, signers) == nil {
			goods++
		}
	}
	if goods == 0 || goods == n {
		t.Errorf("%d of %d were good: the files are not mixed", goods, n)
	}
}

// TestHostilePattern matches a pattern that takes exponential time if it is done wrongly.
func TestHostilePattern(t *testing.T) {
	if match(strings.Repeat("a", 2000), strings.Repeat("*a", 500)+"b") {
		t.Error("matches")
	}
	if !match(strings.Repeat("a", 2000), strings.Repeat("*a", 500)) {
		t.Error("does not match")
	}
}

func FuzzCommit(f *testing.F) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaWcBRqlsCWTDZrsVLLLrDo9ZDgZmbY9x1XtmqUTzVN"
	f.Add([]byte("tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor a <a> 1 +0000\ncommitter a <a> 1 +0000\ngpgsig -----BEGIN SSH SIGNATURE-----\n U1NIU0lHAAAAAQ==\n -----END SSH SIGNATURE-----\n\nx\n"), []byte("a "+key))
	f.Add([]byte("gpgsig -----BEGIN PGP SIGNATURE-----\n"), []byte(`"a b",c namespaces="git",valid-after="20200101Z",cert-authority `+key))
	s, problems := Parse("s", []byte("a "+key))
	if len(problems) > 0 {
		f.Fatal(problems)
	}
	f.Fuzz(func(t *testing.T, commit, signers []byte) {
		if sig, err := s.Verify(commit); err == nil {
			t.Fatalf("%q has a good signature by %v", commit, sig)
		}
		if other, problems := Parse("s", signers); len(problems) == 0 {
			_, _ = other.Verify(commit)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	r := newRepo(b)
	s, _ := Parse("s", []byte("a@example.com "+r.key("key")))
	content := r.content(r.commit("key"))
	for b.Loop() {
		if _, err := s.Verify(content); err != nil {
			b.Fatal(err)
		}
	}
}
