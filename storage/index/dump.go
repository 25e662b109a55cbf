package index

import (
	"context"
	"fmt"
	"io"
)

// Dump writes every row in order, one a line: bucket, key, value. Two indexes of the same journal
// give the same text.
func (db *DB) Dump(w io.Writer) error {
	return db.view(context.Background(), func(t tx) error {
		for line, err := range t.lines() {
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
		return nil
	})
}
