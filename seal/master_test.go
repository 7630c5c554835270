package seal_test

import (
	"bytes"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/seal"
)

var place = seal.Context{Account: "acct-00000000000000001", Chain: chain, Region: "east"}

// others are the contexts that differ from place in one thing.
var others = map[string]seal.Context{
	"account": {Account: "acct-00000000000000002", Chain: chain, Region: "east"},
	"chain":   {Account: place.Account, Chain: snapferry.ChainID{9}, Region: "east"},
	"region":  {Account: place.Account, Chain: chain, Region: "west"},
	"border":  {Account: place.Account + "\x01", Chain: chain, Region: "east"},
}

func masterKey(t testing.TB, b byte) *seal.MasterKey {
	t.Helper()
	k, err := seal.NewMasterKey(bytes.Repeat([]byte{b}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestWrapIsBound(t *testing.T) {
	k := masterKey(t, 1)
	wrapped, err := k.Wrap(nil, dataKey, 3, place)
	if err != nil {
		t.Fatal(err)
	}
	if len(wrapped) != seal.KeySize+seal.Overhead || bytes.Contains(wrapped, dataKey[:8]) {
		t.Fatalf("wrapped into %d bytes", len(wrapped))
	}
	if got, err := k.Unwrap([]byte("x"), wrapped, 3, place); err != nil || !bytes.Equal(got[1:], dataKey) {
		t.Errorf("got %x, %v", got, err)
	}
	corrupt := func(what string, err error) {
		t.Helper()
		if !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", what, err)
		}
	}
	for what, c := range others {
		_, err := k.Unwrap(nil, wrapped, 3, c)
		corrupt("another "+what, err)
	}
	_, err = k.Unwrap(nil, wrapped, 4, place)
	corrupt("another generation", err)
	_, err = masterKey(t, 2).Unwrap(nil, wrapped, 3, place)
	corrupt("another master key", err)
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		_, err := k.Unwrap(nil, bad, 3, place)
		corrupt("a flipped byte", err)
	}
}

func TestCheck(t *testing.T) {
	check, err := seal.NewCheck(dataKey, place)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range others {
		if other, err := seal.NewCheck(dataKey, c); err != nil || other == check {
			t.Errorf("another %s has the same check, or %v", what, err)
		}
	}
	if other, err := seal.NewCheck(bytes.Repeat([]byte{8}, seal.KeySize), place); err != nil || other == check {
		t.Errorf("another data key has the same check, or %v", err)
	}
	if _, err := seal.NewCheck(dataKey[:31], place); !snapferry.IsKind(err, snapferry.Invalid) {
		t.Errorf("a short key: got %v, want Invalid", err)
	}
}

func wrappedSample() seal.WrappedKey {
	return seal.WrappedKey{Key: "key-00000000000000001", Generation: 3, Check: seal.Check{1, 31: 2}, Blob: []byte("by the driver")}
}

func TestWrappedKey(t *testing.T) {
	w := wrappedSample()
	p, err := w.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := seal.DecodeWrapped(p)
	if err != nil || got.Key != w.Key || got.Generation != w.Generation || got.Check != w.Check || !bytes.Equal(got.Blob, w.Blob) {
		t.Errorf("got %+v, %v, want %+v", got, err, w)
	}
	for i := range p[:len(p)-len(w.Blob)+1] {
		if _, err := seal.DecodeWrapped(p[:i]); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("cut to %d bytes: got %v, want Corrupt", i, err)
		}
	}
	newer := bytes.Clone(p)
	newer[5]++
	if _, err := seal.DecodeWrapped(newer); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("a newer version: got %v, want Unsupported", err)
	}
	for what, spoil := range map[string]func(*seal.WrappedKey){
		"no key":        func(w *seal.WrappedKey) { w.Key = "" },
		"no generation": func(w *seal.WrappedKey) { w.Generation = 0 },
		"nothing":       func(w *seal.WrappedKey) { w.Blob = nil },
		"too much":      func(w *seal.WrappedKey) { w.Blob = make([]byte, seal.MaxWrapped) },
	} {
		w := wrappedSample()
		spoil(&w)
		if _, err := w.Encode(); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", what, err)
		}
	}
}

func FuzzWrapped(f *testing.F) {
	w := wrappedSample()
	p, err := w.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		w, err := seal.DecodeWrapped(p)
		if err != nil {
			return
		}
		if again, err := w.Encode(); err != nil || !bytes.Equal(again, p) {
			t.Fatalf("what was read is written as %x, %v", again, err)
		}
	})
}

func TestMetadataKey(t *testing.T) {
	k := func(key, random byte) *seal.MetadataKey {
		k, err := seal.NewMetadataKey(bytes.Repeat([]byte{key}, seal.KeySize), []byte{random})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	a := k(1, 1)
	sealed := a.Seal("here", []byte("a digest"))
	if got, err := a.Open("here", sealed); err != nil || string(got) != "a digest" {
		t.Errorf("got %q, %v", got, err)
	}
	for what, open := range map[string]func() ([]byte, error){
		"another place":        func() ([]byte, error) { return a.Open("there", sealed) },
		"another region's key": func() ([]byte, error) { return k(2, 1).Open("here", sealed) },
		"other metadata":       func() ([]byte, error) { return k(1, 2).Open("here", sealed) },
	} {
		if _, err := open(); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", what, err)
		}
	}
	d := digest.Digest{1}
	look := a.Lookup("acct-1", d)
	if !bytes.Equal(look, k(1, 1).Lookup("acct-1", d)) {
		t.Error("one digest has two values")
	}
	for what, other := range map[string][]byte{
		"account": a.Lookup("acct-2", d), "digest": a.Lookup("acct-1", digest.Digest{2}), "key": k(2, 1).Lookup("acct-1", d), "metadata": k(1, 2).Lookup("acct-1", d),
	} {
		if bytes.Equal(look, other) {
			t.Errorf("another %s has the same value", what)
		}
	}
}

// A frame may be opened where it lies.
func TestOpenInPlace(t *testing.T) {
	k := segmentKey(t)
	plain := bytes.Repeat([]byte("content "), 1000)
	sealed := k.Seal(nil, plain, slot, info)
	got, err := k.Open(sealed[:0:len(sealed)], sealed, slot, info)
	if err != nil || !bytes.Equal(got, plain) || &got[0] != &sealed[0] {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}
