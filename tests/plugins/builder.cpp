// Plays TensorRT's part on the plugin library: builder, runtime and the objects they hand to plugins.
//
//   builder LIBRARY < commands
//
// A line is one command on the current plugin, and is answered by one line. Tensors are written half:2x3x64x8, ranges
// of shapes half:MIN:OPT:MAX, attributes name=f:1.5, name=s:text or name=v:3,3 (integers).

#include <dlfcn.h>

#include <cstdlib>
#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "fakes.h"

using Words = std::vector<std::string>;

namespace
{

std::map<std::string, DataType> const kDTYPES{{"float", DataType::kFLOAT}, {"half", DataType::kHALF},
    {"bf16", DataType::kBF16}, {"bool", DataType::kBOOL}, {"int8", DataType::kINT8}};

Words split(std::string const& text, char at)
{
    Words words;
    std::istringstream stream(text);
    for (std::string word; std::getline(stream, word, at);)
    {
        words.push_back(word);
    }
    return words;
}

Dims dims(std::string const& text)
{
    Dims result{};
    for (std::string const& size : split(text, 'x'))
    {
        result.d[result.nbDims++] = std::stoll(size);
    }
    return result;
}

PluginTensorDesc tensor(std::string const& text)
{
    Words const parts = split(text, ':');
    return {parts.size() > 1 ? dims(parts[1]) : Dims{}, kDTYPES.at(parts[0]), TensorFormat::kLINEAR, 1.0F};
}

DynamicPluginTensorDesc range(std::string const& text)
{
    Words const parts = split(text, ':');
    DynamicPluginTensorDesc result{};
    result.desc = tensor(text);
    result.min = dims(parts.at(1));
    result.opt = dims(parts.at(2));
    result.max = dims(parts.at(3));
    return result;
}

// Fields with the values that they point to.
struct Fields
{
    std::deque<std::string> texts;
    std::deque<float> floats;
    std::deque<std::vector<std::int32_t>> lists;
    std::vector<PluginField> all;

    void add(std::string const& word)
    {
        std::size_t const at = word.find('=');
        std::string const& name = texts.emplace_back(word.substr(0, at));
        std::string const value = word.substr(at + 3);
        switch (word[at + 1])
        {
        case 'f':
            all.emplace_back(name.c_str(), &floats.emplace_back(std::stof(value)), PluginFieldType::kFLOAT32, 1);
            break;
        case 'v':
            lists.emplace_back();
            for (std::string const& item : split(value, ','))
            {
                lists.back().push_back(std::stoi(item));
            }
            all.emplace_back(name.c_str(), lists.back().data(), PluginFieldType::kINT32,
                static_cast<std::int32_t>(lists.back().size()));
            break;
        case 'n': all.emplace_back(name.c_str(), nullptr, PluginFieldType::kCHAR, 3); break;  // wrong on purpose
        default:
            std::string const& text = texts.emplace_back(value);
            all.emplace_back(name.c_str(), text.data(), PluginFieldType::kCHAR, static_cast<std::int32_t>(text.size()));
        }
    }
};

struct Session
{
    std::map<std::string, IPluginCreatorV3One*> creators;
    std::unique_ptr<IPluginV3> plugin;
    std::vector<PluginTensorDesc> current;

    IPluginV3OneBuild& build() const
    {
        return *static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    }
    IPluginV3OneRuntime& runtime() const
    {
        return *static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    }
    IPluginV3OneCore& core() const
    {
        return *static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    }

    std::string create(Words const& words)
    {
        Fields fields;
        for (std::size_t index = 2; index < words.size(); ++index)
        {
            fields.add(words[index]);
        }
        PluginFieldCollection const all{static_cast<std::int32_t>(fields.all.size()), fields.all.data()};
        plugin.reset(creators.at(words[1])->createPlugin("node", &all, TensorRTPhase::kBUILD));
        return plugin ? "ok" : "refused";
    }

    std::string list() const
    {
        std::string text;
        for (auto const& [name, creator] : creators)
        {
            text += name + "/" + creator->getPluginNamespace() + "/" + creator->getPluginVersion() + "(";
            PluginFieldCollection const& fields = *creator->getFieldNames();
            for (std::int32_t index = 0; index < fields.nbFields; ++index)
            {
                text += std::string(index ? "," : "") + fields.fields[index].name;
            }
            text += ") ";
        }
        return text;
    }

    std::string shapes(Words const& words) const
    {
        Builder builder;
        std::vector<DimsExprs> inputs;
        for (std::size_t index = 1; index < words.size(); ++index)
        {
            DimsExprs shape{};
            for (std::string const& size : split(words[index], 'x'))
            {
                shape.d[shape.nbDims++] = builder.symbol(size);
            }
            inputs.push_back(shape);
        }
        DimsExprs output{};
        auto const count = static_cast<std::int32_t>(inputs.size());
        if (build().getOutputShapes(inputs.data(), count, nullptr, 0, &output, 1, builder))
        {
            return "refused";
        }
        std::string text;
        for (std::int32_t axis = 0; axis < output.nbDims; ++axis)
        {
            text += (axis ? "x" : "") + static_cast<Symbol const*>(output.d[axis])->text;
        }
        return text;
    }

    std::string dtypes(Words const& words) const
    {
        std::vector<DataType> inputs;
        for (std::size_t index = 1; index < words.size(); ++index)
        {
            inputs.push_back(kDTYPES.at(words[index]));
        }
        DataType output{};
        if (build().getOutputDataTypes(&output, 1, inputs.data(), static_cast<std::int32_t>(inputs.size())))
        {
            return "refused";
        }
        for (auto const& [name, dtype] : kDTYPES)
        {
            if (dtype == output)
            {
                return name;
            }
        }
        return "unknown";
    }

    // One answer for each position of dtypes, the output last; then whether another format than linear is taken.
    std::string formats(Words const& words) const
    {
        std::vector<DynamicPluginTensorDesc> all;
        for (std::size_t index = 1; index < words.size(); ++index)
        {
            all.emplace_back();
            all.back().desc = tensor(words[index]);
        }
        std::string text;
        auto const inputs = static_cast<std::int32_t>(all.size()) - 1;
        for (std::int32_t position = 0; position <= inputs; ++position)
        {
            text += build().supportsFormatCombination(position, all.data(), inputs, 1) ? "1" : "0";
        }
        all[0].desc.format = TensorFormat::kCHW16;
        return text + (build().supportsFormatCombination(0, all.data(), inputs, 1) ? " 1" : " 0");
    }

    std::vector<DynamicPluginTensorDesc> ranges(Words const& words) const
    {
        std::vector<DynamicPluginTensorDesc> all;
        for (std::size_t index = 1; index < words.size(); ++index)
        {
            all.push_back(range(words[index]));
        }
        return all;
    }

    std::string configure(Words const& words) const
    {
        auto const all = ranges(words);
        auto const count = static_cast<std::int32_t>(all.size());
        return build().configurePlugin(all.data(), count, nullptr, 1) ? "refused" : "ok";
    }

    std::string workspace(Words const& words) const
    {
        auto const all = ranges(words);
        return std::to_string(
            build().getWorkspaceSize(all.data(), static_cast<std::int32_t>(all.size()), nullptr, 1));
    }

    std::string fields() const
    {
        std::ostringstream text;
        PluginFieldCollection const& all = *runtime().getFieldsToSerialize();
        for (std::int32_t index = 0; index < all.nbFields; ++index)
        {
            PluginField const& field = all.fields[index];
            text << field.name << '=';
            if (field.type == PluginFieldType::kCHAR)
            {
                text << "s:" << std::string(static_cast<char const*>(field.data), field.length) << ' ';
            }
            else
            {
                text << "f:" << *static_cast<double const*>(field.data) << ' ';
            }
        }
        return text.str();
    }

    // As TensorRT does it: fields are copied out, the plugin dies, and in another process one is made of the copy.
    std::string reload()
    {
        std::string const op = core().getPluginName();
        PluginFieldCollection const& all = *runtime().getFieldsToSerialize();
        std::deque<std::string> names, values;
        std::vector<PluginField> copies;
        for (std::int32_t index = 0; index < all.nbFields; ++index)
        {
            PluginField const& field = all.fields[index];
            std::size_t const width = field.type == PluginFieldType::kCHAR ? 1 : sizeof(double);
            names.emplace_back(field.name);
            values.emplace_back(static_cast<char const*>(field.data), width * field.length);
            copies.emplace_back(names.back().c_str(), values.back().data(), field.type, field.length);
        }
        plugin.reset();
        PluginFieldCollection const collection{static_cast<std::int32_t>(copies.size()), copies.data()};
        plugin.reset(creators.at(op)->createPlugin("node", &collection, TensorRTPhase::kRUNTIME));
        return plugin ? "ok" : "refused";
    }

    std::string replace(IPluginV3* other)
    {
        plugin.reset(other);
        return plugin ? "ok" : "refused";
    }

    std::string change(Words const& words)
    {
        current.clear();
        for (std::size_t index = 1; index < words.size(); ++index)
        {
            current.push_back(tensor(words[index]));
        }
        auto const count = static_cast<std::int32_t>(current.size());
        return runtime().onShapeChange(current.data(), count, nullptr, 1) ? "refused" : "ok";
    }

    // Addresses of the inputs, the output and the workspace.
    std::string enqueue(Words const& words) const
    {
        std::vector<void*> addresses;
        for (std::size_t index = 1; index < words.size(); ++index)
        {
            addresses.push_back(reinterpret_cast<void*>(std::stoull(words[index], nullptr, 16)));
        }
        std::size_t const count = addresses.size() - 2;
        void* const outputs[] = {addresses[count]};
        return runtime().enqueue(current.data(), nullptr, addresses.data(), outputs, addresses[count + 1], nullptr)
            ? "refused"
            : "ok";
    }

    std::string errors() const
    {
        std::string text;
        for (auto* const source : {&logged, &recorded})
        {
            for (std::string const& line : *source)
            {
                text += (text.empty() ? "" : " | ") + line;
            }
            source->clear();
        }
        return text;
    }

    std::string answer(Words const& words)
    {
        std::string const& verb = words[0];
        if (verb == "list") return list();
        if (verb == "create") return create(words);
        if (verb == "shapes") return shapes(words);
        if (verb == "dtypes") return dtypes(words);
        if (verb == "formats") return formats(words);
        if (verb == "configure") return configure(words);
        if (verb == "workspace") return workspace(words);
        if (verb == "fields") return fields();
        if (verb == "reload") return reload();
        if (verb == "clone") return replace(plugin->clone());
        if (verb == "attach") return replace(runtime().attachToContext(&context));
        if (verb == "change") return change(words);
        if (verb == "enqueue") return enqueue(words);
        if (verb == "errors") return errors();
        return "no such command: " + verb;
    }
};

}  // namespace

// What TensorRT says of itself; FAKE_TENSORRT claims another major version than that of the headers.
extern "C" std::int32_t getInferLibVersion()
{
    char const* const major = std::getenv("FAKE_TENSORRT");
    return 10000 * (major ? std::atoi(major) : NV_TENSORRT_MAJOR);
}

int main(int, char** argv)
{
    void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library)
    {
        std::cerr << dlerror() << std::endl;
        return 2;
    }
    using GetCreators = IPluginCreatorInterface* const* (*) (std::int32_t&);
    using SetLoggerFinder = void (*)(ILoggerFinder*);
    reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"))(&loggerFinder);
    std::int32_t count = 0;
    IPluginCreatorInterface* const* const all = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count);
    Session session;
    for (std::int32_t index = 0; index < count; ++index)
    {
        auto* const creator = static_cast<IPluginCreatorV3One*>(all[index]);
        session.creators[creator->getPluginName()] = creator;
    }
    for (std::string line; std::getline(std::cin, line);)
    {
        std::cout << session.answer(split(line, ' ')) << std::endl;
    }
    session.plugin.reset();
}
