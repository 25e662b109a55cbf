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
		for _, bucket := range buckets {
			for r := range t.scan(bucket, nil, nil) {
				if err := r.check(); err != nil {
					return err
				}
				if _, err := fmt.Fprintf(w, "%s %q %s\n", bucket, r.key, r.value[sum:]); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
