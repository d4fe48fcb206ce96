// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"strings"
	"testing"
)

// commandLines are run in the zoo; what must be the same is all that a caller sees. A blank
// separates arguments, "_" stands for a blank in one, "”" for an empty one.
var commandLines = []string{
	// the program's own options
	"", "-x", "--foo", "foo", "--", "-- info base.qcow2", "-T", "--trace", "--tr", "-T x info base.qcow2",
	"-T help* info base.qcow2", "-T enable=x,file=y info base.qcow2", "--trace=a* info base.qcow2", "-q",
	"info", "check", "map", "compare", "-- foo", "info -- base.qcow2", "-xV", "--version=3", "--help=3",
	// options
	"check --rep", "check --repair", "check -r", "check -r some base.qcow2", "check -r leak base.qcow2", "check --repair=x base.qcow2",
	"check -Zq base.qcow2", "check -qZ base.qcow2", "check base.qcow2 -Z", "check base.qcow2 -qZ foo", "check -qf",
	"check --o=json base.qcow2", "check --out", "check --out=json base.qcow2", "check --ou human base.qcow2", "check --output= base.qcow2",
	"check --output=JSON base.qcow2", "check --output=foo base.qcow2", "check --image base.qcow2", "check --image-opts=x base.qcow2",
	"check --help-x", "check base.qcow2 mid.qcow2", "check -- -q", "check -q base.qcow2", "check -q -q base.qcow2", "check -qq base.qcow2",
	"check base.qcow2 -q", "check --force-share base.qcow2", "check --fo base.qcow2", "check --for base.qcow2", "check --form qcow2 base.qcow2",
	"check --format=qcow2 base.qcow2", "check -fqcow2 base.qcow2", "check -f qcow2 -q base.qcow2", "check - base.qcow2", "check -",
	"check -T none base.qcow2", "check -Tdirectsync base.qcow2", "check -T off base.qcow2", "check -T writeback base.qcow2",
	"check -T unsafe base.qcow2", "check -T writethrough base.qcow2", "check -T foo base.qcow2", "check -T '' base.qcow2",
	"check -T none raw.img", "info -T none base.qcow2", "map -T none base.qcow2", "map -p base.qcow2", "compare -r leaks base.qcow2 mid.qcow2",
	"info --backing base.qcow2", "info --b base.qcow2", "info -q base.qcow2", "info -s base.qcow2", "info --output=json --output=human base.qcow2",
	"info base.qcow2 --output json", "info base.qcow2 -U -f qcow2", "info a b c", "info --format", "info -- --format", "info ''", "check ''", "map ''",
	"compare '' ''", "compare base.qcow2", "compare", "compare a b c", "compare -f base.qcow2 mid.qcow2", "compare -T foo base.qcow2 mid.qcow2",
	"compare -p -T foo base.qcow2 mid.qcow2", "compare --output=json base.qcow2 mid.qcow2", "compare --force base.qcow2 base.qcow2",
	// numbers
	"map -s 1M base.qcow2", "map -s 1M -l 64k base.qcow2", "map --start-offset=1.5k --max-length 0x10000 base.qcow2", "map --start 3M base.qcow2",
	"map --start-offset 100 --max-length 1000 base.qcow2", "map -s 100 -l 3333333 raw.img", "map -s x base.qcow2", "map -s -1 base.qcow2", "map -l -0 base.qcow2",
	"map -s 9223372036854775807 base.qcow2", "map -s 9223372036854775808 base.qcow2", "map -s 99999999999999999999 base.qcow2",
	"map -s 99999999999999999999x base.qcow2", "map -s -99999999999999999999 base.qcow2", "map -l 16E base.qcow2", "map -l 8E base.qcow2",
	"map -l 7.99999999E base.qcow2", "map -s 0x10k base.qcow2", "map -s 0x base.qcow2", "map -s 0x1.8 base.qcow2", "map -s 1. base.qcow2",
	"map -s 1.k base.qcow2", "map -s 1.5 base.qcow2", "map -s .5k base.qcow2", "map -s 0.5k base.qcow2", "map -s 1e3 base.qcow2", "map -s 1.5e3k base.qcow2",
	"map -s 1.5E base.qcow2", "map -s 1E3 base.qcow2", "map -s 5b base.qcow2", "map -s 5B base.qcow2", "map -s 1.0B base.qcow2", "map -s 5kk base.qcow2", "map -s _5 base.qcow2",
	"map -s 5_ base.qcow2", "map -s +5 base.qcow2", "map -s 010 base.qcow2", "map -s 1.2.3k base.qcow2", "map -s '' base.qcow2", "map -l 0 base.qcow2",
	"map -l 0 --output=json base.qcow2", "map -s 9000000000000000000 -l 9000000000000000000 base.qcow2", "map -s 5M base.qcow2", "map -s 5M --output=json base.qcow2",
	"map -s 0xffffffffffffffffff base.qcow2", "map -s 1.99999999999999999999k base.qcow2",
	// formats
	"check -f foo base.qcow2", "info -f foo base.qcow2", "map -f foo base.qcow2", "compare -f foo base.qcow2 mid.qcow2", "compare -F foo base.qcow2 mid.qcow2",
	"check -f file base.qcow2", "info -f file base.qcow2", "map -f file base.qcow2", "map -f file --output=json tiny.img", "info -f host_device base.qcow2",
	"info -f '' base.qcow2", "check -f raw base.qcow2", "check -f qcow2 raw.img", "check -f qcow2 empty", "info -f qcow2 tiny.img", "check -f luks base.qcow2",
	"info -f luks base.qcow2", "check -f luks luks.luks", "map luks.luks", "compare luks.luks luks.luks", "compare luks.qcow2 luks.qcow2",
	// names
	"info file:base.qcow2", "info file:nothing", "info file:c:olon.qcow2", "info c:olon.qcow2", "info ./c:olon.qcow2", "map file:c:olon.qcow2",
	"info foo:bar", "info nothing", "check nothing", "map nothing", "compare nothing base.qcow2", "compare base.qcow2 nothing", "compare nothing nothing",
	"info dir/", "info base.qcow2/x", "info ./base.qcow2", "info sub/../base.qcow2", "info fifo/x", "info -f raw dir", "info file:", "info with,comma.qcow2",
	"info host_device:base.qcow2", "info file:file:base.qcow2", "info file:json:{}",
	// json:
	"info json:", "info json:{", "info json:[]", `info json:{"a"}`, `info json:{"a":}`, `info json:{"driver":"qcow2"}`, "info json:{} ", `info json:{}x`,
	`info json:{"driver":"qcow2","driver":"raw"}`, `info json:nul`, `info json:"x"`, `info json:{'driver':'raw','file':{'filename':'tiny.img'}}`,
	`info json:{"driver":"raw","file":"x"}`, `info json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"raw.img"}}`,
	`info json:{"driver":"raw","offset":"64k","size":1024,"file.filename":"raw.img"}`, `map json:{"driver":"raw","offset":"64k","size":1024,"file.filename":"raw.img"}`,
	`map --output=json json:{"driver":"raw","offset":"60k","file.filename":"raw.img"}`, `info json:{"driver":5}`, `info json:{"driver":"raw","file.filename":5}`,
	`info json:{"driver":"raw","file":[1]}`, `info json:{"file":{"filename":"base.qcow2"},"backing":null}`, `info json:{"file":{"filename":"base.qcow2"},"backing":""}`,
	`map json:{"file":{"filename":"mid.qcow2"},"backing":null}`, `map --output=json json:{"file":{"filename":"mid.qcow2"},"backing":null}`,
	`map json:{"file":{"filename":"mid.qcow2"},"backing":{"driver":"raw","file":{"driver":"file","filename":"raw.img"}}}`,
	`map json:{"file":{"filename":"orphan.qcow2"},"backing":{"file":{"filename":"raw.img"}}}`, `map json:{"file":{"filename":"orphan.qcow2"},"backing.file.filename":"base.qcow2"}`,
	`info json:{"file":{"filename":"mid.qcow2"},"backing":{"driver":"raw"}}`, `info json:{"driver":"file","filename":"base.qcow2"}`, `info json:{"driver":"foo","filename":"base.qcow2"}`,
	`info json:{"driver":"qcow2","file":{"driver":"raw","file":{"driver":"file","filename":"base.qcow2"}}}`, `check json:{"driver":"qcow2","file":{"driver":"raw","file":{"driver":"file","filename":"base.qcow2"}}}`,
	`map json:{"driver":"qcow2","file":{"driver":"raw","size":1048576,"file":{"driver":"file","filename":"base.qcow2"}}}`,
	`info json:{"driver":"qcow2","file":{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}}`,
	`info json:{"driver":"raw","file":{"driver":"qcow2","file":{"driver":"file","filename":"mid.qcow2"}}}`,
	`map json:{"driver":"raw","file":{"driver":"qcow2","file":{"driver":"file","filename":"mid.qcow2"}}}`,
	`info json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"},"bogus":1}`, `info json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2","bogus":1}}`,
	`info json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"},"x":{"y":[1,{"z":2}]}}`, `info json:{"a":[]}`, `info json:{"a":01}`, `info json:{"a":-}`,
	`info json:{"a":1.}`, `info json:{"a":tru}`, `info json:{"a":1,}`, `info json:{,}`, `info json:{1:2}`, `info json:{"a"_"b"}`, `info json:{"a":"b"`, `info json:{"a":"b`, `info json:{"a":"\x"}`,
	`info json:{"file.filename":"\u0062ase.qcow2"}`, `info json:{"file.filename":"\ud800"}`, `info json:]`, `info json:{]}`, `info json:[1,2}`, `info json:#`, `info json:{"a":1}_{}`, `info json:{"a":[1_2]}`,
	`info json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"},"node-name":"x"}`, `info json:{"file":{"driver":"file","filename":"data.qcow2"},"data-file":{"driver":"file","filename":"ext.data"}}`,
	`map json:{"file":{"driver":"file","filename":"data.qcow2"},"data-file":{"driver":"file","filename":"ext.data"}}`, `map json:{"file":{"driver":"file","filename":"base.qcow2"},"data-file":{"driver":"file","filename":"ext.data"}}`,
	`map json:{"file":{"driver":"file","filename":"datagone.qcow2"},"data-file.filename":"ext.data"}`,
	// --image-opts
	"info --image-opts base.qcow2", "info --image-opts driver", "info --image-opts ''", "info --image-opts file=base.qcow2", "info --image-opts driver=qcow2,file.filename=base.qcow2",
	"info --image-opts file.filename=base.qcow2", "info --image-opts file.filename=with,,comma.qcow2", "info --image-opts driver=qcow2,file.filename=base.qcow2,bogus=1",
	"info --image-opts driver=qcow2,file.filename=base.qcow2,file.bogus=1", "info --image-opts driver=qcow2,file.filename=base.qcow2,lazy-refcounts", "info --image-opts driver=qcow2,file.filename=base.qcow2,nolazy-refcounts",
	"info --image-opts driver=qcow2,file.filename=base.qcow2,lazy-refcounts=5", "info --image-opts driver=qcow2,file.filename=v2.qcow2,lazy-refcounts=on", "info --image-opts driver=qcow2,file.filename=base.qcow2,id=5",
	"info --image-opts driver=qcow2,file.filename=base.qcow2,id=five", "check --image-opts driver=qcow2,file.filename=base.qcow2,overlap-check=all", "check --image-opts driver=qcow2,file.filename=base.qcow2,overlap-check=most",
	"check --image-opts driver=qcow2,file.filename=base.qcow2,overlap-check=all,overlap-check.template=none", "check --image-opts driver=qcow2,file.filename=base.qcow2,cache-size=1k", "map --image-opts driver=qcow2,file.filename=huge.qcow2,l2-cache-entry-size=512",
	"map --image-opts driver=qcow2,file.filename=huge.qcow2,l2-cache-entry-size=500", "map --image-opts driver=qcow2,file.filename=huge.qcow2,l2-cache-size=2k,cache-size=1k", "map --image-opts driver=qcow2,file.filename=huge.qcow2,l2-cache-size=1k,cache-size=2k",
	"map --image-opts driver=qcow2,file.filename=huge.qcow2,refcount-cache-size=3k,cache-size=2k", "map --image-opts driver=qcow2,file.filename=huge.qcow2,refcount-cache-size=1k,cache-size=2k,l2-cache-size=1k", "map --image-opts driver=qcow2,file.filename=huge.qcow2,cache-size=2k",
	"map --image-opts driver=qcow2,file.filename=huge.qcow2,cache-size=200M", "map --image-opts driver=qcow2,file.filename=huge.qcow2,cache-size=2x", "map --image-opts driver=qcow2,file.filename=huge.qcow2,cache-clean-interval=x", "map --image-opts driver=qcow2,file.filename=huge.qcow2,cache-clean-interval=5",
	"info --image-opts driver=raw,file.filename=raw.img,size=100", "info --image-opts driver=raw,file.filename=raw.img,size=512", "info --image-opts driver=raw,file.filename=raw.img,offset=1k", "info --image-opts driver=raw,file.filename=raw.img,offset=100G",
	"info --image-opts driver=raw,file.filename=raw.img,offset=1k,size=100G", "info --image-opts driver=raw,file.filename=raw.img,size=1z", "info --image-opts driver=raw,file.filename=raw.img,size=99999999999999999999", "info --image-opts driver=raw,file.filename=raw.img,offset=0",
	"info --image-opts driver=raw,file.driver=file,file.filename=raw.img,file.locking=off", "info --image-opts driver=raw,file.driver=file,file.filename=raw.img,file.locking=maybe", "info --image-opts driver=raw,file.driver=file,file.filename=raw.img,file.aio=native",
	"info --image-opts driver=raw,file.driver=file,file.filename=raw.img,file.aio=threads", "info --image-opts driver=raw,file.driver=file,file.filename=raw.img,file.aio=io_uring,file.drop-cache=off", "info --image-opts driver=raw,file.driver=file,file.filename=raw.img,file.aio=foo",
	"info --image-opts driver=raw,file.driver=file,file.filename=raw.img,cache.direct=on", "info --image-opts driver=raw,file.driver=file,file.filename=raw.img,cache.direct=foo", "info --image-opts driver=raw,file.filename=raw.img,force-share=on", "info -U --image-opts driver=raw,file.filename=raw.img,force-share=on",
	"info -U --image-opts driver=raw,file.filename=raw.img,force-share=off", "info --image-opts driver=raw,file.filename=raw.img,read-only=on", "info --image-opts -f raw driver=raw,file.filename=raw.img", "compare --image-opts -F raw driver=raw,file.filename=raw.img driver=raw,file.filename=raw.img",
	"compare --image-opts driver=raw,file.filename=raw.img driver=raw,file.filename=raw.img,offset=0", "compare --image-opts driver=raw,file.filename=raw.img driver=raw,file.filename=raw.img,offset=512", "compare --image-opts driver=raw,file.filename=raw.img,size=1M driver=raw,file.filename=raw.img",
	"info --image-opts driver=qcow2,file=base.qcow2", "info --image-opts driver=file,filename=base.qcow2", "info --image-opts driver=qcow2", "info --image-opts filename=base.qcow2", "info --image-opts driver=qcow2,filename=base.qcow2",
	"map --image-opts driver=qcow2,file.filename=mid.qcow2,backing.driver=raw,backing.file.filename=raw.img", "map --image-opts driver=qcow2,file.filename=orphan.qcow2,backing.file.filename=raw.img", "map --image-opts driver=qcow2,file.filename=base.qcow2,backing.file.filename=raw.img",
	"map --image-opts driver=qcow2,file.filename=orphan.qcow2,backing=base", "map --image-opts driver=qcow2,file.filename=orphan.qcow2,backing=", "map --image-opts driver=raw,file.filename=raw.img,backing.file.filename=raw.img", "info --image-opts driver=qcow2,file.filename=orphan.qcow2,backing=",
	"info --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s", "info --object secret,id=s,data=x --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s", "check --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s",
	"check --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.format=aes", "check --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.format=luks", "check --image-opts driver=qcow2,file.filename=base.qcow2,encrypt.format=luks", "info --image-opts driver=luks,file.filename=luks.luks,key-secret=s",
	"check --image-opts driver=luks,file.filename=luks.luks,key-secret=s", "map --image-opts driver=aes,file.filename=aes.qcow2", "map --image-opts driver=qcow2,file.filename=aes.qcow2,encrypt.key-secret=s", "info --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.bogus=s", "check aes.qcow2",
	// --object
	"info --object", "info --object secret raw.img", "info --object secret,id=x raw.img", "info --object secret,id=x,data=a raw.img", "info --object secret,id=x,data=a,bogus=1 raw.img", "info --object id=x raw.img", "info --object '' raw.img",
	"info --object secret,id=x,data=a,file=/x raw.img", "info --object secret,id=1,data=a raw.img", `info --object {"qom-type":"secret","id":"x","data":"a"} raw.img`, `info --object {"qom-type":"secret"} raw.img`, `info --object {"qom-type" raw.img`, "info --object secret,x raw.img",
	"compare --object secret raw.img raw.img", "info --object secret,id=x,data=a --object secret,id=x,data=a raw.img", "info --object secret,id=x,data=a,,b raw.img",
	// compare
	"compare base.qcow2 base.raw", "compare -s base.qcow2 base.raw", "compare base.qcow2 packed.qcow2", "compare -s base.qcow2 packed.qcow2", "compare top.qcow2 flat.qcow2", "compare -s top.qcow2 flat.qcow2", "compare flat.qcow2 top.qcow2",
	"compare base.qcow2 mid.qcow2", "compare mid.qcow2 top.qcow2", "compare top.qcow2 mid.qcow2", "compare -s mid.qcow2 top.qcow2", "compare -q base.qcow2 mid.qcow2", "compare -p base.qcow2 base.raw", "compare -p -q base.qcow2 base.raw", "compare -pq base.qcow2 mid.qcow2",
	"compare -f qcow2 -F raw base.qcow2 base.raw", "compare -f raw base.qcow2 base.qcow2", "compare base.qcow2 base.qcow2", "compare raw.img odd.img", "compare odd.img raw.img", "compare raw.img onraw.qcow2", "compare onraw.qcow2 raw.img", "compare -p huge.qcow2 new.qcow2", "compare -p new.qcow2 none.qcow2",
	"compare none.qcow2 new.qcow2", "compare none.qcow2 empty", "compare -p none.qcow2 none.qcow2", "compare -s none.qcow2 empty", "compare empty empty", "compare -s new.qcow2 new.qcow2", "compare ext.qcow2 ext64.qcow2", "compare -s ext.qcow2 ext.qcow2", "compare pmeta.qcow2 pfull.qcow2", "compare -s pmeta.qcow2 pext.qcow2",
	"compare data.qcow2 ext.data", "compare -s data.qcow2 ext.data", "compare dataraw.qcow2 extraw.data", "compare l2odd.qcow2 base.qcow2", "compare base.qcow2 l2odd.qcow2", "compare l2past.qcow2 base.qcow2", "compare l2packed.qcow2 base.qcow2", "compare l2gone.qcow2 base.qcow2", "compare l2reserved.qcow2 base.qcow2", "compare extboth.qcow2 ext.qcow2",
	"compare l2zero2.qcow2 v2.qcow2", "compare c2M.qcow2 c2M.qcow2", "compare -s huge.qcow2 huge.qcow2", "compare -p top.qcow2 flat.qcow2", "compare -T none base.qcow2 base.raw", "compare -T none odd.img raw.img", "compare -T none -s odd.img odd.img", "compare odd.qcow2 odd.qcow2", "compare garbage tiny.img", "compare aes.qcow2 aes.qcow2",
	"compare onodd.qcow2 odd.img", "compare -s onodd.qcow2 onodd.qcow2", "compare snaps.qcow2 snaps2.qcow2", "compare zstd.qcow2 zstd.qcow2", "compare c512.qcow2 c4k.qcow2", "compare -U base.qcow2 base.raw", "compare json.qcow2 base.qcow2", "compare jsonraw.qcow2 raw.img", "compare rc1.qcow2 lazy.qcow2", "compare -F qcow2 base.qcow2 base.raw",
}

func testCommandLines(t *testing.T) {
	for _, line := range commandLines {
		t.Run(strings.ReplaceAll(line, "/", "|"), func(t *testing.T) { same(t, split(line)...) })
	}
}

func split(line string) []string {
	args := strings.Fields(line)
	for i, a := range args {
		if a == "''" {
			a = ""
		}
		args[i] = strings.ReplaceAll(a, "_", " ")
	}
	return args
}
