package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/seal"
)

// regionKeyFile is the default name of a region's key, in its directory.
const regionKeyFile = "region.key"

// keyFile is where the region's key is.
func (c *serverConfig) keyFile() string {
	if c.KeyFile != "" {
		return c.KeyFile
	}
	return filepath.Join(c.Directory, regionKeyFile)
}

// readRegionKey reads the key that opens the dumps of a region's metadata: 32
// bytes in hexadecimal. NotFound when there is no file.
func readRegionKey(path string) (*seal.DumpKey, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, fileError("read the region's key", path, err)
	}
	key, err := hex.DecodeString(string(bytes.TrimSpace(p)))
	if err != nil || len(key) != seal.KeySize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s is not the key of a region: %d bytes in hexadecimal", path, seal.KeySize).
			WithHint("bring the key back from its copy; without any, move the file away: the region makes a new one at its next start")
	}
	return seal.NewDumpKey(key)
}

// ensureRegionKey reads the region's key, or makes it, durably, when there is
// none: at the first start, and in regions that are older than it.
func ensureRegionKey(path string, log *slog.Logger) (*seal.DumpKey, error) {
	k, err := readRegionKey(path)
	if !snapferry.IsKind(err, snapferry.NotFound) {
		return k, err
	}
	key := make([]byte, seal.KeySize)
	rand.Read(key)
	if err := writeFile(path, append(hex.AppendEncode(nil, key), '\n'), 0o600); err != nil {
		return nil, err
	}
	log.Warn("the region's key was made: keep a copy of the file, apart from the bucket; it opens the dump of the metadata when that is lost", "file", path)
	return seal.NewDumpKey(key)
}
