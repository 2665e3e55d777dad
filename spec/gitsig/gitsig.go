// Package gitsig finds the allowed signer of a Git commit. Parse reads an allowed signers file of OpenSSH, and Signers.Verify checks the
// SSH signature of a commit as git verify-commit does, with the same result. It runs no program and reads no files:
// spec/gitrev finds the commit, and spec/filesource uses both.
//
// It supports signatures by plain SSH keys (Ed25519, ECDSA, RSA with SHA-2, and those of security keys). OpenPGP and X.509
// signatures, certificates of SSH and DSA are refused, with what to do instead. A commit may be hostile: its key is used only
// if it is listed, and no error has text of the commit.
package gitsig

import (
	"bytes"
	"cmp"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
)

// Signature is that of a commit, by an allowed signer.
type Signature struct {
	// Principal is the name that the allowed signers file gives the signer. It may be a pattern.
	Principal string
	// Key is the fingerprint of the key.
	Key string
}

// howToSign ends the error of a commit that is not signed, or with something else.
const howToSign = "sign it with an SSH key: git config gpg.format ssh, and git commit -S"

// Verify returns the signature of a commit, if it is valid and by an allowed signer. The argument is the content of the Git
// object. As with git, the key must be valid at the time of the commit, which its committer says.
func (s *Signers) Verify(commit []byte) (Signature, error) {
	payload, armored, err := split(commit)
	if err != nil {
		return Signature{}, err
	}
	at, err := committed(payload)
	if err != nil {
		return Signature{}, err
	}
	sig, err := parse(armored)
	if err != nil {
		return Signature{}, err
	}
	by, err := s.allows(sig.PublicKey, at)
	if err != nil {
		return Signature{}, err
	}
	switch err := sshsig.Verify(bytes.NewReader(payload), sig, sig.PublicKey, sig.HashAlgorithm, namespace); {
	case errors.Is(err, sshsig.ErrNamespaceMismatch):
		return Signature{}, errors.New("has a signature that was made for something else than Git; " + howToSign)
	case err != nil:
		return Signature{}, fmt.Errorf("has a signature by key %s that is not of this commit; %s", by.Key, howToSign)
	}
	return by, nil
}

// split returns the signed part of a commit, and the signature. Both are as git has them, but for a commit with several
// signatures, which is refused.
func split(commit []byte) (payload, signature []byte, err error) {
	inSignature, inOther := false, false
	for rest := commit; len(rest) > 0; {
		line, next := rest, []byte(nil)
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			line, next = rest[:i+1], rest[i+1:]
		}
		continued := line[0] == ' '
		text, isSignature := bytes.CutPrefix(line, []byte("gpgsig "))
		switch {
		case inSignature && continued:
			signature = append(signature, line[1:]...)
		case isSignature && signature != nil:
			return nil, nil, errors.New("has more than one signature; sign it once")
		case isSignature:
			signature = append([]byte{}, text...)
			inSignature, inOther = true, false
		case inOther && continued:
		case bytes.HasPrefix(line, []byte("gpgsig")): // of another hash, which git leaves out too
			inSignature, inOther = false, true
		default:
			inSignature, inOther = false, false
			if line[0] == '\n' { // the message follows
				line, next = rest, nil
			}
			payload = append(payload, line...)
		}
		rest = next
	}
	if signature == nil {
		return nil, nil, errors.New("is not signed; " + howToSign)
	}
	return payload, signature, nil
}

// maxTime is the last second that has a year of four digits.
const maxTime = 253402300799

// committed returns when the committer says that a commit was made.
func committed(payload []byte) (time.Time, error) {
	for line := range bytes.Lines(payload) {
		if line[0] == '\n' {
			break
		}
		who, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "committer ")
		if !ok {
			continue
		}
		when := strings.Fields(who[strings.LastIndexByte(who, '>')+1:])
		if len(when) != 2 {
			break
		}
		seconds, err := strconv.ParseInt(when[0], 10, 64)
		if err != nil || seconds <= 0 || seconds > maxTime {
			break
		}
		return time.Unix(seconds, 0), nil
	}
	return time.Time{}, errors.New("does not say when it was committed; commit it again with git")
}

// parse reads an armored signature.
func parse(armored []byte) (*sshsig.Signature, error) {
	armored = bytes.TrimSpace(armored)
	switch {
	case bytes.HasPrefix(armored, []byte("-----BEGIN PGP ")):
		return nil, errors.New("is signed with OpenPGP, which weir does not verify; " + howToSign)
	case bytes.HasPrefix(armored, []byte("-----BEGIN SIGNED MESSAGE-----")):
		return nil, errors.New("is signed with an X.509 certificate, which weir does not verify; " + howToSign)
	case !bytes.HasPrefix(armored, []byte("-----BEGIN "+sshsig.PEMType+"-----")):
		return nil, errors.New("has a signature of a format that is not known; " + howToSign)
	}
	broken := errors.New("has an SSH signature that cannot be read; " + howToSign)
	block, rest := pem.Decode(armored)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 || len(block.Headers) > 0 {
		return nil, broken
	}
	if kind := keyType(block.Bytes); otherKey(kind) {
		return nil, fmt.Errorf("is signed with a key or certificate of type %s, which weir does not verify; sign with a plain key of another type, and list that", kind)
	}
	sig, err := sshsig.ParseSignature(block.Bytes)
	if err != nil {
		return nil, errors.New("has an SSH signature that cannot be read, or by RSA with SHA-1; " + howToSign)
	}
	if !slices.Contains(keyTypes, sig.PublicKey.Type()) {
		return nil, broken
	}
	return sig, nil
}

// keyType returns the type of the key in a signature, or "". A key of a type that is not supported may be one that cannot be
// parsed.
func keyType(signature []byte) string {
	var head struct {
		Magic   [6]byte
		Version uint32
		Key     string
		Rest    []byte `ssh:"rest"`
	}
	var key struct {
		Type string
		Rest []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(signature, &head) != nil || ssh.Unmarshal([]byte(head.Key), &key) != nil {
		return ""
	}
	return key.Type
}

// allows returns the principal of a key, if it may sign commits at that time. It looks as git does: the first line with the key
// at that time says which principals there are, and the first of them that any line allows is the signer.
func (s *Signers) allows(key ssh.PublicKey, at time.Time) (Signature, error) {
	wire := string(key.Marshal())
	found := Signature{Key: ssh.FingerprintSHA256(key)}
	var reason error
	var principals string
	for i := range s.signers {
		l := &s.signers[i]
		if l.key != wire {
			continue
		}
		why := l.outOfTime(at)
		if why == nil {
			principals = l.principals
			break
		}
		reason = cmp.Or(reason, l.of(s.file, found.Key, why))
	}
	for principal := range strings.SplitSeq(principals, ",") {
		if principal == "" {
			break
		}
		for i := range s.signers {
			l := &s.signers[i]
			if l.key != wire || !match(principal, l.principals) {
				continue
			}
			why := l.outOfTime(at)
			if l.limited && !match(namespace, l.namespaces) {
				why = errors.New(`does not allow it to sign commits: its namespaces lack "git"`)
			}
			if why == nil {
				found.Principal = principal
				return found, nil
			}
			reason = l.of(s.file, found.Key, why)
		}
	}
	switch {
	case reason != nil:
	case principals != "":
		reason = fmt.Errorf("is signed by key %s, whose line in %s has no principal that its own patterns allow", found.Key, s.file)
	default:
		reason = fmt.Errorf("is signed by key %s, which %s does not list; have it signed by a key that is there, or add this one", found.Key, s.file)
	}
	return found, reason
}

// of returns the error of a commit because of a line.
func (l *signer) of(file, key string, why error) error {
	return fmt.Errorf("is signed by key %s, and %s:%d %w", key, file, l.line, why)
}

// outOfTime returns an error if a line does not allow its key to sign at that time.
func (l *signer) outOfTime(at time.Time) error {
	text := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case l.after != 0 && at.Unix() < l.after:
		return fmt.Errorf("does not allow it before %s; the commit is of %s", text(time.Unix(l.after, 0)), text(at))
	case l.before != 0 && at.Unix() > l.before:
		return fmt.Errorf("does not allow it after %s; the commit is of %s", text(time.Unix(l.before, 0)), text(at))
	}
	return nil
}
