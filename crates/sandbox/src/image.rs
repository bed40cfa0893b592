//! The one image of all containers, made without a registry from Debian's static busybox.

use std::path::Path;

use crate::RuntimeNode;

/// Its name as runtimes know it once they have loaded the archive.
pub const IMAGE: &str = "podwire.test/busybox:1";

/// A docker-archive (what `docker save` writes): a layer, its configuration, and a list that names both. The command waits for
/// `exec`; it serves a pod's pause container as well.
const BUILD: &str = r#"
    mkdir -p "$DIR/image/root/bin"
    cd "$DIR/image"
    for name in dev etc proc sys tmp; do mkdir "root/$name"; done
    cp "$BUSYBOX" root/bin/busybox
    for name in cat env grep hostname httpd ip ls mkdir nc nslookup ping sh sleep true; do ln -s busybox "root/bin/$name"; done
    tar -C root -cf layer.tar .
    digest=$(sha256sum layer.tar | cut -d ' ' -f 1)
    printf '{"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sleep", "100000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' "$digest" >config.json
    printf '[{"Config": "config.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]' "$IMAGE" >manifest.json
    tar -cf ../image.tar manifest.json config.json layer.tar"#;

/// Makes the image's archive on a node and returns its path.
pub fn archive(node: &RuntimeNode) -> String {
    let busybox = "/bin/busybox";
    assert!(
        Path::new(busybox).exists(),
        "no {busybox}: install busybox-static"
    );
    let dir = format!("DIR={}", node.dir().display());
    let (busybox, image) = (format!("BUSYBOX={busybox}"), format!("IMAGE={IMAGE}"));
    node.must(&["env", &dir, &busybox, &image, "sh", "-ec", BUILD]);
    node.path("image.tar")
}
