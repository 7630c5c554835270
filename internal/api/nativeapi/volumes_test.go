package nativeapi_test

import (
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

// TestVolumesRefused asks for what there is not, and in ways that are wrong. This
// region has no place for live volumes.
func TestVolumesRefused(t *testing.T) {
	w := newWorld(t, false)
	if l := get[client.VolumeList](t, w, 200, "GET", "/v1/volumes", ""); l.Volumes == nil || len(l.Volumes) > 0 {
		t.Errorf("volumes: got %+v, want an empty list", l.Volumes)
	}
	w.refused(t, alice, "POST", "/v1/volumes", `{"size": 1048576}`, 501, snapferry.Unsupported)
	w.refused(t, alice, "POST", "/v1/volumes", `{"size": 1048576, "bytes": 1}`, 400, snapferry.Invalid)
	w.refused(t, alice, "POST", "/v1/volumes", `{"snapshot": "snap-1"}`, 400, snapferry.Invalid)
	w.refused(t, alice, "GET", "/v1/volumes?name=a%2Fb", "", 400, snapferry.Invalid)
	w.refused(t, alice, "GET", "/v1/volumes?size=1", "", 400, snapferry.Invalid)
	w.refused(t, "", "GET", "/v1/volumes", "", 403, snapferry.Denied)
	const volume = "/v1/volumes/vol-0123456789abcdef0"
	for path, body := range map[string]string{
		"/resize": `{"size": 1048576}`, "/rollback": `{"snapshot": "snap-0123456789abcdef0"}`, "/hydrate": `{}`,
	} {
		w.refused(t, alice, "POST", volume+path, body, 404, snapferry.NotFound)
		w.refused(t, alice, "POST", "/v1/volumes/disk"+path, body, 400, snapferry.Invalid)
		w.refused(t, alice, "POST", volume+path, `{"what": 1}`, 400, snapferry.Invalid)
	}
	w.refused(t, alice, "POST", volume+"/export", `{}`, 501, snapferry.Unsupported)
	w.refused(t, alice, "DELETE", volume+"/export", "", 404, snapferry.NotFound)
	w.refused(t, alice, "GET", volume, "", 404, snapferry.NotFound)
	w.refused(t, alice, "DELETE", volume, "", 404, snapferry.NotFound)
	w.refused(t, alice, "DELETE", "/v1/volumes/disk", "", 400, snapferry.Invalid)
	w.refused(t, alice, "POST", "/v1/snapshots", `{"volumes": ["vol-0123456789abcdef0"]}`, 404, snapferry.NotFound)
	w.refused(t, alice, "POST", "/v1/snapshots", `{"volumes": ["disk"]}`, 400, snapferry.Invalid)
	w.refused(t, alice, "POST", "/v1/snapshots", `{}`, 400, snapferry.Invalid)
}
