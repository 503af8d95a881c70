// A device whose memory is its own, in this process: its kernels are the CPU's, no other backend may use its buffers, and it
// uses none but its own. Copies that need not be waited for come as late as they may. It counts what is copied from and to it by
// name, and supports what a test lets it.
#pragma once

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

#include "core/aligned.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

class fake_device {
public:
    explicit fake_device(const std::string & name) : name(name) {
        dev.iface.get_name = [](ggml_backend_dev_t d) {
            return self(d).name.c_str();
        };
        dev.iface.get_description = [](ggml_backend_dev_t) {
            return "a device of a test";
        };
        dev.iface.get_memory = [](ggml_backend_dev_t d, size_t * free, size_t * total) {
            *free = *total = self(d).n_free;
        };
        dev.iface.get_type = [](ggml_backend_dev_t) {
            return GGML_BACKEND_DEVICE_TYPE_GPU;
        };
        dev.iface.get_props       = get_props;
        dev.iface.init_backend    = init_backend;
        dev.iface.get_buffer_type = [](ggml_backend_dev_t d) {
            return &self(d).buft;
        };
        dev.iface.supports_op   = supports_op;
        dev.iface.supports_buft = [](ggml_backend_dev_t d, ggml_backend_buffer_type_t b) {
            return b == &self(d).buft;
        };
        dev.reg     = &reg;
        dev.context = this;

        buft.iface.get_name = [](ggml_backend_buffer_type_t b) {
            return self(b->device).name.c_str();
        };
        buft.iface.alloc_buffer  = alloc_buffer;
        buft.iface.get_alignment = [](ggml_backend_buffer_type_t) {
            return (size_t) 64;
        };
        buft.device = &dev;

        reg.api_version    = GGML_BACKEND_API_VERSION;
        reg.iface.get_name = [](ggml_backend_reg_t) {
            return "Fake";
        };
        reg.iface.get_device_count = [](ggml_backend_reg_t) {
            return (size_t) 1;
        };
        reg.iface.get_proc_address = [](ggml_backend_reg_t, const char *) {
            return (void *) nullptr;
        };
    }

    fake_device(const fake_device &) = delete;

    const std::string   name;
    ggml_backend_device dev{};

    size_t n_free = 1 << 30;

    // beside what the CPU supports
    std::function<bool(const ggml_tensor *)> supports = [](const ggml_tensor *) {
        return true;
    };

    // times that (a part of) a tensor of this name was read from here or written to here, by the host or another device
    std::map<std::string, int> n_read, n_written;
    int                        n_graphs  = 0;
    int                        n_buffers = 0;  // ever allocated
    size_t                     n_most    = 0;  // bytes of the largest

private:
    static fake_device & self(ggml_backend_dev_t d) { return *(fake_device *) d->context; }
    static fake_device & self(ggml_backend_buffer_t b) { return self(b->buft->device); }

    static void get_props(ggml_backend_dev_t d, ggml_backend_dev_props * props) {
        *props             = {};
        props->name        = self(d).name.c_str();
        props->description = "";
        props->type        = GGML_BACKEND_DEVICE_TYPE_GPU;
    }

    static bool supports_op(ggml_backend_dev_t d, const ggml_tensor * op) {
        return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op) &&
               self(d).supports(op);
    }

    static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t b, size_t size) {
        ggml_backend_buffer_i iface{};
        iface.free_buffer = [](ggml_backend_buffer_t buf) {
            morphkv_free_aligned()(buf->context);
        };
        iface.get_base = [](ggml_backend_buffer_t buf) {
            return buf->context;
        };
        iface.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
            memset((char *) t->data + offset, value, size);
        };
        iface.set_tensor = [](ggml_backend_buffer_t buf, ggml_tensor * t, const void * data, size_t offset,
                              size_t size) {
            self(buf).n_written[t->name]++;
            memcpy((char *) t->data + offset, data, size);
        };
        iface.get_tensor = [](ggml_backend_buffer_t buf, const ggml_tensor * t, void * data, size_t offset,
                              size_t size) {
            self(buf).n_read[t->name]++;
            memcpy(data, (const char *) t->data + offset, size);
        };
        iface.clear = [](ggml_backend_buffer_t buf, uint8_t value) {
            memset(buf->context, value, buf->size);
        };
        self(b->device).n_buffers++;
        self(b->device).n_most = std::max(self(b->device).n_most, size);
        // whole multiples of the alignment
        return ggml_backend_buffer_init(b, iface, morphkv_malloc_aligned((size + 127) / 64 * 64), size);
    }

    static ggml_backend_t init_backend(ggml_backend_dev_t d, const char *) {
        static ggml_guid guid = { 'f', 'a', 'k', 'e' };

        ggml_backend_t cpu = ggml_backend_cpu_init();
        ggml_backend_cpu_set_n_threads(cpu, 1);
        auto * res          = new ggml_backend{ &guid, {}, d, cpu };
        res->iface.get_name = [](ggml_backend_t b) {
            return self(b->device).name.c_str();
        };
        res->iface.free = [](ggml_backend_t b) {
            ggml_backend_free((ggml_backend_t) b->context);
            delete b;
        };
        res->iface.get_tensor_async = [](ggml_backend_t b, const ggml_tensor * t, void * data, size_t offset,
                                         size_t size) {
            // as a device does, it knows addresses: the graph may be gone by then
            const char * src = (const char *) t->data + offset;
            self(b->device).late.push_back([b, name = std::string(t->name), src, data, size] {
                self(b->device).n_read[name]++;
                memcpy(data, src, size);
            });
        };
        res->iface.synchronize   = copy_late;
        res->iface.graph_compute = [](ggml_backend_t b, ggml_cgraph * gf) {
            copy_late(b);
            for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
                check_place(self(b->device), ggml_graph_node(gf, i));
            }
            self(b->device).n_graphs++;
            return ggml_backend_graph_compute((ggml_backend_t) b->context, gf);
        };
        return res;
    }

    static void copy_late(ggml_backend_t b) {
        for (const auto & copy : self(b->device).late) {
            copy();
        }
        self(b->device).late.clear();
    }

    static void check_place(fake_device & dev, const ggml_tensor * node) {
        if (node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE || node->op == GGML_OP_PERMUTE ||
            node->op == GGML_OP_TRANSPOSE) {
            return;  // nothing is done
        }
        auto check = [&](const ggml_tensor * t) {
            const ggml_tensor * whole = t->view_src ? t->view_src : t;
            if (whole->buffer && ggml_backend_buffer_get_type(whole->buffer) != &dev.buft) {
                GGML_ABORT("%s of %s is not in the memory of %s", t->name, ggml_op_desc(node), dev.name.c_str());
            }
        };
        check(node);
        for (const ggml_tensor * src : node->src) {
            if (src) {
                check(src);
            }
        }
    }

    ggml_backend_buffer_type           buft{};
    ggml_backend_reg                   reg{};
    std::vector<std::function<void()>> late;
};
