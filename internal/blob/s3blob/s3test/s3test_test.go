//go:build unix

package s3test_test

import (
	"net/http"
	"os"
	"testing"

	"github.com/snapferry/snapferry/internal/blob/s3blob/s3test"
)

// TestBuild builds the store, so that other tests find it built.
func TestBuild(t *testing.T) {
	if _, err := s3test.Build(t.Context()); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// TestStopAndStart proves that the store is gone after Stop, and back at the
// same place after Start.
func TestStopAndStart(t *testing.T) {
	s := s3test.Start(t, os.Getenv("CI") != "", "east")
	s.Stop()
	if resp, err := http.Get(s.Endpoint); err == nil {
		resp.Body.Close()
		t.Errorf("after stop: got %s, want no answer", resp.Status)
	}
	s.Start()
	resp, err := http.Get(s.Endpoint + "/east")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("without a signature: got %s, want %d", resp.Status, http.StatusForbidden)
	}
}
