package memblob_test

import (
	"testing"

	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/memblob"
)

func TestConformance(t *testing.T) {
	blobtest.RunConformance(t, func(*testing.T) blob.Driver { return memblob.New() })
}

func TestConformanceBehindSlow(t *testing.T) {
	blobtest.RunConformance(t, func(t *testing.T) blob.Driver {
		return blobtest.NewSlow(memblob.New(), 0)
	})
}
