package index

import (
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Kill leaves the file as a killed process does.
func (db *DB) Kill() error { return db.bolt.Close() }

// Flip changes one bit of the n-th row of a bucket: of its key, or of its value.
func (db *DB) Flip(bucket string, n int, inKey bool, bit int) error {
	return db.bolt.Update(func(b *bolt.Tx) error {
		rows := b.Bucket([]byte(bucket))
		cursor := rows.Cursor()
		k, v := cursor.First()
		for ; n > 0; n-- {
			k, v = cursor.Next()
		}
		if k == nil {
			return fmt.Errorf("bucket %s has no such row", bucket)
		}
		newKey, newValue := append([]byte(nil), k...), append([]byte(nil), v...)
		part := newValue
		if inKey {
			part = newKey
		}
		bit %= len(part) * 8
		part[bit/8] ^= 1 << (bit % 8)
		if err := rows.Delete(k); err != nil {
			return err
		}
		return rows.Put(newKey, newValue)
	})
}

// SetSchema makes the file one of another schema.
func (db *DB) SetSchema(n int) error {
	return db.update(func(t tx) error { return t.put(bucketMeta, key("schema"), n) })
}

// DropBucket takes away a bucket, as if the file were one of before it was thought of.
func (db *DB) DropBucket(name string) error {
	return db.bolt.Update(func(b *bolt.Tx) error { return b.DeleteBucket([]byte(name)) })
}

// SetEffort bounds what a query reads; with zeros it is bounded as always.
func (db *DB) SetEffort(few, most int) { db.effort = effort{few, most} }
