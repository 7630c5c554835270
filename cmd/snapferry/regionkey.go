package main

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

const (
	// regionKeyFile is the default name of a region's key, in its directory.
	regionKeyFile = "region.key"
	// credentialsDirectory is where systemd says that a service's credentials are.
	credentialsDirectory = "CREDENTIALS_DIRECTORY"

	minPassphrase   = 16 // bytes
	passphraseInfo  = "snapferry region key 1\x00"
	passphraseTurns = 1_000_000 // of PBKDF2-HMAC-SHA256
)

// The region's key seals what the bucket has of the region's secrets: the dumps of
// the metadata, and the keyring; and digests of encrypted content in the metadata. It
// is kept apart from the bucket: in a file, as a credential of systemd, or as a
// passphrase in the environment.

// keyFile is where the region's key is; empty when it is a passphrase.
func (c *serverConfig) keyFile() (string, error) {
	switch {
	case c.KeyPassphraseEnv != "":
		return "", nil
	case c.KeyCredential != "":
		dir := os.Getenv(credentialsDirectory)
		if dir == "" {
			return "", snapferry.Errorf(snapferry.Invalid, "key_credential is %s, but %s is not set", c.KeyCredential, credentialsDirectory).
				WithHint("start the region as a service of systemd that has LoadCredential=%s:PATH", c.KeyCredential)
		}
		return filepath.Join(dir, c.KeyCredential), nil
	case c.KeyFile != "":
		return c.KeyFile, nil
	}
	return filepath.Join(c.Directory, regionKeyFile), nil
}

func (c *serverConfig) checkKeySource() error {
	n := 0
	for _, s := range []string{c.KeyFile, c.KeyPassphraseEnv, c.KeyCredential} {
		if s != "" {
			n++
		}
	}
	if n > 1 {
		return snapferry.Errorf(snapferry.Invalid, "give one of key_file, key_passphrase_env and key_credential")
	}
	if c.KeyCredential != filepath.Base(c.KeyCredential) && c.KeyCredential != "" {
		return snapferry.Errorf(snapferry.Invalid, "key_credential %q is not the name of a credential", c.KeyCredential)
	}
	return nil
}

// regionKey reads the key of the region with an id: 32 bytes. NotFound when there is
// none.
func (c *serverConfig) regionKey(id string) ([]byte, error) {
	path, err := c.keyFile()
	if err != nil {
		return nil, err
	}
	if path == "" {
		return c.passphraseKey(id)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, fileError("read the region's key", path, err)
	}
	key, err := hex.DecodeString(string(bytes.TrimSpace(p)))
	clear(p)
	if err != nil || len(key) != seal.KeySize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s is not the key of a region: %d bytes in hexadecimal", path, seal.KeySize).
			WithHint("bring the key back from its copy; without any, move the file away: a region in which nothing was encrypted makes a new one at its next start")
	}
	return key, nil
}

// passphraseKey derives the region's key from a passphrase in the environment, with
// the region's id, which is in the bucket, as salt.
func (c *serverConfig) passphraseKey(id string) ([]byte, error) {
	phrase := os.Getenv(c.KeyPassphraseEnv)
	if len(phrase) < minPassphrase {
		return nil, snapferry.Errorf(snapferry.Invalid, "the passphrase in %s has %d bytes, fewer than %d", c.KeyPassphraseEnv, len(phrase), minPassphrase).
			WithHint("set %s to the passphrase of the region", c.KeyPassphraseEnv)
	}
	key, err := pbkdf2.Key(sha256.New, phrase, []byte(passphraseInfo+id), passphraseTurns, seal.KeySize)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "derive the region's key: %w", err)
	}
	return key, nil
}

// ensureRegionKey reads the region's key, or makes it, durably, when there is none:
// at the first start, and in regions that are older than it. A bucket with a keyring
// was sealed with a key that there was: no other one is made then.
func (c *serverConfig) ensureRegionKey(ctx context.Context, id string, bucket *blob.Bucket, log *slog.Logger) ([]byte, error) {
	key, err := c.regionKey(id)
	if !snapferry.IsKind(err, snapferry.NotFound) {
		return key, err
	}
	path, perr := c.keyFile()
	if perr != nil {
		return nil, perr
	}
	sealed, lerr := hasKeyring(ctx, bucket)
	if lerr != nil {
		return nil, lerr
	}
	if sealed || c.KeyCredential != "" {
		return nil, snapferry.Errorf(snapferry.NotFound, "%w; the keyring of the region is sealed with it", err).
			WithHint("bring %s back from its copy: nothing encrypted can be opened without it", path)
	}
	key = make([]byte, seal.KeySize)
	rand.Read(key)
	if err := writeFile(path, append(hex.AppendEncode(nil, key), '\n'), 0o600); err != nil {
		return nil, err
	}
	log.Warn("the region's key was made: keep a copy of the file, apart from the bucket; it opens the dump of the metadata when that is lost, and everything encrypted", "file", path)
	return key, nil
}

var errFound = errors.New("found")

// hasKeyring reports whether a bucket has a keyring.
func hasKeyring(ctx context.Context, bucket *blob.Bucket) (bool, error) {
	err := bucket.List(ctx, record.KeyringPrefix(), "", func(blob.Info) error { return errFound })
	if errors.Is(err, errFound) {
		return true, nil
	}
	return false, err
}
