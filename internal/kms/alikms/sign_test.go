package alikms

import (
	"net/url"
	"strings"
	"testing"
)

// none is the SHA-256 of a body that is empty.
const none = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Signatures that others made. The first is the example of Alibaba Cloud's
// description of the signature, "fixed parameter values"; the others were seen of
// its clients: of the Go module darabonba-openapi v2.1.13, and of the npm package
// @alicloud/ecs20140526 7.11.6.
func TestSignOfOthers(t *testing.T) {
	for name, v := range map[string]struct {
		id, secret, query, header, want string
	}{
		"the documentation": {
			id: "YourAccessKeyId", secret: "YourAccessKeySecret",
			query: "ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai",
			header: "host: ecs.cn-shanghai.aliyuncs.com\nx-acs-action: RunInstances\nx-acs-content-sha256: " + none +
				"\nx-acs-date: 2023-10-26T10:22:32Z\nx-acs-signature-nonce: 3156853299f313e23d1673dc12e1703d\nx-acs-version: 2014-05-26",
			want: "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0",
		},
		"the Go client": {
			id: "LTAIEXAMPLE", secret: "secretEXAMPLE",
			query: "DestinationRegionId=cn-beijing&DestinationSnapshotName=c+p%2B~%2A&Encrypted=true&RegionId=cn-hangzhou&SnapshotId=s-src",
			header: "host: 127.0.0.1:8804\nx-acs-action: CopySnapshot\nx-acs-content-sha256: " + none +
				"\nx-acs-credentials-provider: static_ak\nx-acs-date: 2026-11-21T19:32:27Z\nx-acs-signature-nonce: 2cd58caf009d4755744cac6c2e46841c\nx-acs-version: 2014-05-26",
			want: "8f8e10fcf564e0ff763815f49a5a7df0e05ff557bd4cfd09a9c6410767ae9e8d",
		},
		"the JavaScript client": {
			id: "LTAIEXAMPLE", secret: "secretEXAMPLE",
			query: "CopyEncryptionConfiguration.Encrypted=true&CopyEncryptionConfiguration.KMSKeyId=k&EnableCrossRegionCopy=true&TargetCopyRegions=%5B%22cn-beijing%22%5D" +
				"&autoSnapshotPolicyName=p&regionId=cn-hangzhou&repeatWeekdays=%5B%221%22%5D&retentionDays=-1&timePoints=%5B%220%22%5D",
			header: "host: 127.0.0.1:8806\nx-acs-action: CreateAutoSnapshotPolicy\nx-acs-content-sha256: " + none +
				"\nx-acs-credentials-provider: static_ak\nx-acs-date: 2026-11-21T19:35:15Z\nx-acs-signature-nonce: c819bbca483d71cb7203bed22cfbca5f30174a473ac9dbf0ec021b557578b082\nx-acs-version: 2014-05-26",
			want: "9eee6818f6b0b7538cb658282f0a8581acfedfd7c09159fc88428faeb0456225",
		},
	} {
		query, err := url.ParseQuery(v.query)
		if err != nil {
			t.Fatal(err)
		}
		m := message{method: "POST", path: "/", query: query, header: map[string]string{}, bodySum: none}
		for line := range strings.Lines(v.header) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			m.header[key] = value
		}
		got := sign(m, v.id, v.secret)
		if !strings.HasSuffix(got, ",Signature="+v.want) || !strings.HasPrefix(got, "ACS3-HMAC-SHA256 Credential="+v.id+",SignedHeaders=host;x-acs-action;") {
			t.Errorf("%s: got %s, want %s", name, got, v.want)
		}
	}
}

func TestEncode(t *testing.T) {
	got := encode(url.Values{"b": {"ü /+*~%27"}, "a.1": {"2", "1"}, "B": {""}})
	if want := "B=&a.1=2&a.1=1&b=%C3%BC%20%2F%2B%2A~%2527"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
