//! Bindings to C libraries that are loaded at run time, made by bindgen from
//! the installed headers and committed: a build of the product needs neither
//! the headers nor libclang.

/// One library.
pub struct Bindings {
    /// Where its bindings are committed.
    pub path: &'static str,
    /// What includes its headers.
    pub wrapper: &'static str,
    /// What it is called in the first line.
    pub library: &'static str,
    /// One of its headers: where it is missing, nothing can be compared.
    pub header: &'static str,
    /// Types and constants, as patterns; what they refer to comes along. Not
    /// the exported functions: naming them would link the library.
    pub types: &'static [&'static str],
    pub constants: &'static [&'static str],
    /// Functions that become fields of a `Library`, looked up in it when it is
    /// loaded.
    pub functions: &'static [&'static str],
}

pub const OFI: Bindings = Bindings {
    path: "src/sys/generated/ofi.rs",
    wrapper: "#include <rdma/fabric.h>\n#include <rdma/fi_domain.h>\n#include <rdma/fi_endpoint.h>\n\
              #include <rdma/fi_rma.h>\n#include <rdma/fi_cm.h>\n#include <rdma/fi_eq.h>\n",
    library: "libfabric",
    header: "/usr/include/rdma/fabric.h",
    types: &[
        "fi_info",
        "fi_context2",
        "fid_(fabric|domain|ep|cq|av|mr)",
        "fi_ops",
        "fi_ops_(fabric|domain|mr|ep|cm|msg|rma|cq|av)",
        "fi_(cq|av)_attr",
        "fi_cq_(msg|err)_entry",
        "fi_msg",
        "fi_threading",
        "fi_progress",
        "fi_resource_mgmt",
        "fi_wait_obj",
        "fi_cq_format",
        "fi_av_type",
        "fi_ep_type",
    ],
    constants: &[
        "FI_(MSG|RMA|READ|WRITE|SEND|RECV|REMOTE_READ|COMPLETION|INJECT|SELECTIVE_COMPLETION|SOURCE|NUMERICHOST)",
        "FI_(CONTEXT|CONTEXT2|MULTI_RECV|LOCAL_COMM|REMOTE_COMM|ADDR_UNSPEC|KEY_NOTAVAIL|ENABLE|GETWAIT)",
        "FI_MR_(LOCAL|VIRT_ADDR|ALLOCATED|PROV_KEY|ENDPOINT|RAW)",
        "FI_ORDER_(NONE|SAS)",
        "FI_SOCKADDR_IN6?",
        "FI_(MAJOR|MINOR)_VERSION",
        "FI_(EAGAIN|EAVAIL|ENOMEM|ECANCELED|EBUSY|ENODATA|ENOENT|ENOSYS)",
    ],
    functions: &[],
};

pub const VERBS: Bindings = Bindings {
    path: "src/sys/generated/verbs.rs",
    wrapper: "#include <infiniband/verbs.h>\n",
    library: "libibverbs",
    header: "/usr/include/infiniband/verbs.h",
    types: &[
        "ibv_(access_flags|send_flags|qp_attr_mask)",
        "ibv_(device|port|qp)_attr",
        "ibv_wc(_flags|_opcode|_status)?",
        "ibv_wr_opcode",
    ],
    constants: &[],
    functions: &[
        "ibv_(get|free)_device_list",
        "ibv_get_device_name",
        "ibv_(open|close)_device",
        "ibv_query_(device|port|gid)",
        "ibv_(alloc|dealloc)_pd",
        "ibv_(reg|dereg)_mr",
        "ibv_(create|destroy)_comp_channel",
        "ibv_(create|resize|destroy)_cq",
        "ibv_get_cq_event",
        "ibv_ack_cq_events",
        "ibv_(create|destroy)_srq",
        "ibv_(create|modify|destroy)_qp",
        "ibv_(get|ack)_async_event",
        "ibv_wc_status_str",
    ],
};

impl Bindings {
    /// The Rust code.
    pub fn make(&self) -> Result<String, String> {
        let target = bindgen::RustTarget::stable(85, 0).map_err(|e| e.to_string())?;
        let mut builder = bindgen::Builder::default()
            .header_contents("wrapper.h", self.wrapper)
            .prepend_enum_name(false)
            .generate_comments(false)
            .use_core()
            // Those of libibverbs hold locks, whose size the platform knows.
            .blocklist_type("pthread_.*")
            .rust_target(target)
            .rust_edition(bindgen::RustEdition::Edition2024)
            .formatter(bindgen::Formatter::None);
        for pattern in self.types {
            builder = builder.allowlist_type(pattern);
        }
        for pattern in self.constants {
            builder = builder.allowlist_var(pattern);
        }
        if !self.functions.is_empty() {
            builder = builder
                .dynamic_library_name("Library")
                .dynamic_link_require_all(true)
                .raw_line("use libc::{pthread_cond_t, pthread_mutex_t};");
        }
        for pattern in self.functions {
            builder = builder.allowlist_function(pattern);
        }
        let code = builder.generate().map_err(|e| format!("{}: {e}", self.path))?.to_string();
        // What bindgen writes is for libloading 0.8, whose trait had another name.
        let code = code.replace("AsRef < :: std :: ffi :: OsStr >", ":: libloading :: AsFilename");
        let tree = syn::parse_file(&code).map_err(|e| format!("bindgen gave code that does not parse: {e}"))?;
        Ok(format!(
            "// Generated from the headers of {} by `cargo xtask bindings`; not to be edited.\n{}",
            self.library,
            prettyplease::unparse(&tree)
        ))
    }
}
