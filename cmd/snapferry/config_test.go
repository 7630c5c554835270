package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
)

const goodConfig = `name: east
directory: data
api:
  listen: ./api.sock
handoff: handoff.sock
peer:
  listen: 127.0.0.1:0
  certificate: peer.pem
  key: peer.key
  ca: ca.pem
accounts:
- name: main
  token_file: token
`

func TestServerConfig(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	load := func(text string) (serverConfig, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return loadServerConfig(path)
	}
	got, err := load(goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	want := serverConfig{
		Name: "east", Directory: dir + "/data", API: apiConfig{Listen: dir + "/api.sock"}, Handoff: dir + "/handoff.sock",
		Peer:     peerConfig{Listen: "127.0.0.1:0", Certificate: dir + "/peer.pem", Key: dir + "/peer.key", CA: dir + "/ca.pem"},
		Accounts: []accountConfig{{Name: "main", TokenFile: dir + "/token"}},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("configuration (-got +want):\n%s", diff)
	}
	for what, change := range map[string][2]string{
		"unknown key":         {"name: east", "name: east\nnmae: west"},
		"bad name":            {"name: east", "name: East"},
		"no directory":        {"directory: data", ""},
		"no handoff":          {"handoff: handoff.sock", ""},
		"long socket":         {"handoff.sock", strings.Repeat("x", 108)},
		"tokens in the clear": {"./api.sock", "0.0.0.0:80"},
		"no port":             {"./api.sock", "localhost"},
		"no authority":        {"  ca: ca.pem\n", ""},
		"compression":         {"name: east", "name: east\ncompression: lz4"},
		"log":                 {"name: east", "name: east\nlog: loud"},
		"memory":              {"name: east", "name: east\nmemory: 1000"},
		"negative grace":      {"name: east", "name: east\nreclaim_grace: -1s"},
		"grace of years":      {"name: east", "name: east\nreclaim_grace: 20000h"},
		"grace without unit":  {"name: east", "name: east\nreclaim_grace: soon"},
		"negative pace":       {"name: east", "name: east\ncompaction_rate: -5"},
		"itself as peer":      {"name: east", "name: east\npeers: [{name: east, address: 'localhost:1'}]"},
		"peer without port":   {"name: east", "name: east\npeers: [{name: west, address: localhost}]"},
		"no accounts":         {"accounts:\n- name: main\n  token_file: token\n", ""},
		"account twice":       {"accounts:\n", "accounts:\n- name: main\n  token_file: token\n"},
		"no token":            {"  token_file: token\n", ""},
	} {
		if _, err := load(strings.Replace(goodConfig, change[0], change[1], 1)); !snapferry.IsKind(err, snapferry.Invalid) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want invalid and the file's name", what, err)
		}
	}
	for _, listen := range []string{"127.0.0.1:8080", "'[::1]:8080'", "localhost:0"} {
		if _, err := load(strings.Replace(goodConfig, "./api.sock", listen, 1)); err != nil {
			t.Errorf("listen on %s: %v", listen, err)
		}
	}
}

func TestDevDir(t *testing.T) {
	// Sockets of a path this long need another place.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	first, err := prepareDev(dir, []snapferry.RegionName{"east", "west"}, "")
	if err != nil {
		t.Fatal(err)
	}
	for r, c := range first.configs {
		if len(c.Handoff) > maxSocketPath || len(c.API.Listen) > maxSocketPath {
			t.Errorf("sockets of %s are %s and %s", r, c.Handoff, c.API.Listen)
		}
		// As after a restart of the machine.
		if err := os.RemoveAll(filepath.Dir(c.Handoff)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(filepath.Dir(c.Handoff)) })
	}
	again, err := prepareDev(dir, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(again.configs, first.configs); diff != "" {
		t.Errorf("the second start (-got +want):\n%s", diff)
	}
	st, err := os.Stat(filepath.Join(dir, devClient))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("client.yaml: %v %v, want mode 0600", st.Mode(), err)
	}
	third, err := prepareDev(dir, []snapferry.RegionName{"north"}, "s2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(third.configs["north"].Handoff)) })
	if got := len(third.configs["east"].Peers); got != 2 {
		t.Errorf("with a third region east has %d peers, want 2", got)
	}
	for _, bad := range []snapferry.RegionName{"pki", "Up"} {
		if _, err := prepareDev(t.TempDir(), []snapferry.RegionName{bad}, ""); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("region %s: %v, want invalid", bad, err)
		}
	}
}

// TestRegionRefused opens regions in this process that must not start.
func TestRegionRefused(t *testing.T) {
	d, err := prepareDev(t.TempDir(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	s, err := openRegion(t.Context(), d.configs["east"], log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openRegion(t.Context(), d.configs["east"], log); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("a second server: %v, want a conflict", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- s.serve(ctx, func() {}) }()
	stop()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if err := s.close(); err != nil {
		t.Errorf("close: %v", err)
	}
	west := d.configs["west"]
	west.Directory = d.configs["east"].Directory
	if _, err := openRegion(t.Context(), west, log); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("the directory of another region: %v, want a conflict", err)
	}
	east := d.configs["east"]
	east.Accounts = []accountConfig{{Name: "main", TokenHash: control.HashToken("fresh")}}
	if s, err = openRegion(t.Context(), east, log); err != nil {
		t.Fatalf("another token: %v", err)
	}
	if account, err := s.region.Authenticate(t.Context(), "fresh"); err != nil || account.Name != "main" {
		t.Errorf("the new token: %v, %v, want account main", account, err)
	}
	if account, err := s.region.Authenticate(t.Context(), "stale"); !snapferry.IsKind(err, snapferry.Denied) {
		t.Errorf("an unknown token: %v, %v, want denied", account, err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	east = d.configs["east"]
	east.Peer.Certificate, east.Peer.Key = d.configs["west"].Peer.Certificate, d.configs["west"].Peer.Key
	if _, err := openRegion(t.Context(), east, log); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("another region's certificate: %v, want invalid", err)
	}
	if s, err = openRegion(t.Context(), d.configs["east"], log); err != nil {
		t.Fatalf("after all that: %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}
