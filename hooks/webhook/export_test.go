package webhook

// Sign gives the signature of a message with a secret.
func Sign(secret, id, timestamp string, body []byte) (string, error) {
	s, err := New(Config{URL: "http://example.org", Secret: secret})
	if err != nil {
		return "", err
	}
	return s.signature(id, timestamp, body), nil
}
