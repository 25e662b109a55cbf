package ssh

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// NewHostKey makes a key by which clients know the server again: ed25519, in the form that OpenSSH keeps private keys
// in. It panics when it cannot: that would be a bug.
func NewHostKey() []byte {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "herdbook")
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(block)
}

// parseHostKey reads what [NewHostKey] made, or a key of the operator's.
func parseHostKey(key []byte) (ssh.Signer, error) {
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	return signer, nil
}
