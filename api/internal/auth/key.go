package auth

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// KeyHash is under what a public key is kept. It is no hash that a token can have: who shows the
// public half of a key over HTTP proves nothing.
func KeyHash(key ssh.PublicKey) string {
	sum := sha256.Sum256(key.Marshal())
	return "ssh:" + hex.EncodeToString(sum[:])
}

// NewKey is what is kept of the public key of an SSH client, a line of authorized_keys(5) without options.
func NewKey(owner string, role access.Role, line string) (registry.Token, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	switch {
	case err != nil && strings.Contains(line, "PRIVATE KEY"):
		return registry.Token{}, registry.Invalid("ssh_key", "this is a private key, which nobody but its owner may have; the public one is in the file whose name ends in .pub")
	case err != nil:
		return registry.Token{}, registry.Invalid("ssh_key", "a public key is a line as in ~/.ssh/id_ed25519.pub: a type, base64 and perhaps a comment")
	case len(options) > 0:
		return registry.Token{}, registry.Invalid("ssh_key", "options of authorized_keys are not known here; give the key alone")
	case len(strings.TrimSpace(string(rest))) > 0:
		return registry.Token{}, registry.Invalid("ssh_key", "there is more than one line; add one key at a time")
	}
	if err := checkKey(key); err != nil {
		return registry.Token{}, err
	}
	var id [8]byte
	rand.Read(id[:]) // crypto/rand never fails
	return registry.Token{
		ID: hex.EncodeToString(id[:]), Owner: owner, Role: role.String(), Hash: KeyHash(key),
		SSHKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))),
	}, nil
}

// minRSABits is the shortest RSA key that is taken. Source: NIST SP 800-131A, revision 2, section 3.
const minRSABits = 2048

// checkKey refuses what is too weak to prove anything.
func checkKey(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		if known, ok := key.(ssh.CryptoPublicKey); ok {
			if n, ok := known.CryptoPublicKey().(*rsa.PublicKey); ok && n.N.BitLen() >= minRSABits {
				return nil
			}
		}
		return registry.Invalid("ssh_key", "an RSA key has %d bits or more; better make one of the type ed25519", minRSABits)
	}
	return registry.Invalid("ssh_key", "keys of the type %.40q are not taken; make one of the type ed25519", key.Type())
}
