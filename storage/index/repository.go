package index

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// RepositoryByName is the repository with that name that no model stands behind.
func (db *DB) RepositoryByName(ctx context.Context, name string) (registry.Repository, error) {
	id, err := get1[string](ctx, db, bucketRepoNames, key(name), "repository "+name)
	if err != nil {
		return registry.Repository{}, err
	}
	return get1[registry.Repository](ctx, db, bucketRepositories, key(id), "repository "+name)
}

// Repositories are all repositories that no model stands behind, by name.
func (db *DB) Repositories(ctx context.Context) ([]registry.Repository, error) {
	var repositories []registry.Repository
	err := db.view(ctx, func(t tx) error {
		for row := range t.scan(bucketRepoNames, nil, nil) {
			var id string
			if err := row.decode(&id); err != nil {
				return err
			}
			var r registry.Repository
			if _, err := t.get(bucketRepositories, key(id), &r); err != nil {
				return err
			}
			repositories = append(repositories, r)
		}
		return nil
	})
	return repositories, err
}

// Canonical is the SHA-256 digest of what an owner of blobs or a repository of manifests knows by d. It is d itself unless
// a client pushed it by another algorithm.
func (db *DB) Canonical(ctx context.Context, owner string, d digest.Digest) (digest.Digest, error) {
	if d.Algorithm() == digest.SHA256 {
		return d, nil
	}
	return get1[digest.Digest](ctx, db, bucketAliases, key(owner, d.String()), "digest "+d.String())
}

// naming are the last parts of the keys of an owner's rows in a bucket whose value is one of these digests.
func naming(t tx, bucket, owner string, digests ...digest.Digest) (names []string, err error) {
	wanted := map[string]bool{} // as JSON, because there may be many rows
	for _, d := range digests {
		text, err := json.Marshal(d)
		if err != nil {
			return nil, err
		}
		wanted[string(text)] = true
	}
	p := prefix(owner)
	for row := range t.scan(bucket, p, nil) {
		if err := row.check(); err != nil {
			return nil, err
		}
		if wanted[string(row.value[sum:])] {
			names = append(names, string(row.key[len(p):]))
		}
	}
	return names, nil
}

func putAlias(t tx, owner string, alias, d digest.Digest) error {
	if alias == "" {
		return nil
	}
	return t.put(bucketAliases, key(owner, alias.String()), d)
}

func manifestPushed(t tx, r registry.ManifestPushed) error {
	if err := putManifest(t, r.Repository, r.Manifest, nil); err != nil {
		return err
	}
	if err := putAlias(t, r.Repository, r.Alias, r.Manifest.Digest); err != nil {
		return err
	}
	named := r.Manifest.Digest
	if r.Alias != "" {
		named = r.Alias // a client finds it by the digest that it knows
	}
	for _, tag := range r.Tags {
		if err := t.put(bucketTags, key(r.Repository, tag), named); err != nil {
			return err
		}
	}
	return nil
}

func deleteManifest(t tx, repository string, d digest.Digest) error {
	var m registry.StoredManifest
	found, err := t.get(bucketManifests, key(repository, d.String()), &m)
	if err != nil || !found {
		return err
	}
	if m.Subject != "" {
		if err := t.delete(bucketReferrers, key(repository, m.Subject.String(), d.String())); err != nil {
			return err
		}
	}
	aliases, err := naming(t, bucketAliases, repository, d)
	if err != nil {
		return err
	}
	named := []digest.Digest{d}
	for _, alias := range aliases {
		named = append(named, digest.Digest(alias))
	}
	tags, err := naming(t, bucketTags, repository, named...)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		if err := t.delete(bucketTags, key(repository, tag)); err != nil {
			return err
		}
	}
	if err := t.delete(bucketManifests, key(repository, d.String())); err != nil {
		return err
	}
	return dropAliases(t, repository, d)
}

// dropAliases removes the aliases of what an owner has neither as a blob nor as a manifest any more.
func dropAliases(t tx, owner string, digests ...digest.Digest) error {
	var gone []digest.Digest
	for _, d := range digests {
		if k := key(owner, d.String()); !t.has(bucketBlobs, k) && !t.has(bucketManifests, k) {
			gone = append(gone, d)
		}
	}
	aliases, err := naming(t, bucketAliases, owner, gone...)
	if err != nil {
		return err
	}
	for _, alias := range aliases {
		if err := t.delete(bucketAliases, key(owner, alias)); err != nil {
			return err
		}
	}
	return nil
}

// layerLinked lets an owner serve a layer that is composed of blobs which it comes to own.
func layerLinked(t tx, r registry.LayerLinked) error {
	if name, err := ownerName(t, r.ModelID); err != nil || name == "" {
		return err
	}
	for _, f := range r.Layer.Files {
		if err := own(t, r.ModelID, f.Digest.String(), f.SizeBytes); err != nil {
			return err
		}
	}
	return t.put(bucketLayers, key(r.ModelID, r.Layer.Digest.String()), r.Layer)
}

// dropLayers removes the layers that an owner cannot compose without blobs that it has let go of, and those that are named themselves.
func dropLayers(t tx, owner string, gone ...digest.Digest) error {
	p := prefix(owner)
	var keys [][]byte
	for row := range t.scan(bucketLayers, p, nil) {
		var layer registry.ImageLayer
		if err := row.decode(&layer); err != nil {
			return err
		}
		composed := func(f registry.File) bool { return slices.Contains(gone, f.Digest) }
		if slices.Contains(gone, layer.Digest) || slices.ContainsFunc(layer.Files, composed) {
			keys = append(keys, key(owner, layer.Digest.String()))
		}
	}
	for _, k := range keys {
		if err := t.delete(bucketLayers, k); err != nil {
			return err
		}
	}
	return nil
}

func deleteRepository(t tx, id string) error {
	var r registry.Repository
	found, err := t.get(bucketRepositories, key(id), &r)
	if err != nil || !found {
		return err
	}
	if err := disownAll(t, id); err != nil {
		return err
	}
	for _, bucket := range []string{bucketManifests, bucketTags, bucketReferrers, bucketAliases, bucketLayers} {
		if err := t.deletePrefix(bucket, prefix(id)); err != nil {
			return err
		}
	}
	return errors.Join(t.delete(bucketRepoNames, key(r.Name)), t.delete(bucketRepositories, key(id)))
}

// predicateType is the annotation by which statements of the same kind are known.
// Source: in-toto attestation framework v1.1, as OCI registries use it.
const predicateType = "in-toto.io/predicate-type"

// sameKind reports whether one statement takes the place of another.
func sameKind(a, b map[string]string) bool {
	return a[predicateType] == b[predicateType] && a[registry.AnnotationEnvironment] == b[registry.AnnotationEnvironment]
}

func attested(t tx, r registry.VersionAttested) error {
	for _, b := range r.Blobs {
		if err := own(t, r.ModelID, b.Digest.String(), b.SizeBytes); err != nil {
			return err
		}
	}
	for _, m := range r.Manifests {
		if kind := m.Annotations[predicateType]; kind == registry.EvaluationsPredicate || kind == registry.LineagePredicate {
			if err := t.delete(bucketUnattested, key(r.ModelID, r.Tag.String())); err != nil {
				return err
			}
		}
		p := prefix(r.ModelID, m.Subject.String())
		var old []digest.Digest
		for row := range t.scan(bucketReferrers, p, nil) {
			var there registry.StoredManifest
			d := digest.Digest(row.key[len(p):])
			if _, err := t.get(bucketManifests, key(r.ModelID, d.String()), &there); err != nil {
				return err
			}
			if d != m.Digest && there.PushedBy == "" && there.ArtifactType == m.ArtifactType && sameKind(there.Annotations, m.Annotations) {
				old = append(old, d)
			}
		}
		for _, d := range old {
			if err := deleteManifest(t, r.ModelID, d); err != nil {
				return err
			}
		}
		if err := putManifest(t, r.ModelID, m, nil); err != nil {
			return err
		}
	}
	return nil
}
